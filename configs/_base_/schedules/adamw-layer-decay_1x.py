# AdamW 1e-4 with layer-wise decay for 12 epochs of batch 16 (8 GPUs × 2).
_base_ = ['../mmvisattn.py', 'mmdet::_base_/schedules/schedule_1x.py']

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
