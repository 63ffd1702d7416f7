# No result was published. Ours: AdamW 1e-4 with layer-wise decay, drop path 0.5 as in the released detectors, 12
# epochs, batch 16 (8 GPUs × 2).
_base_ = [
    '../_base_/mmvisattn.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.DefocusMamba',
        arch='base',
        token_order='window',
        pretrain_size=224,
        rope_scale=20.0,
        delta_scale=4.57,
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/defocus_mamba_base.pth'),
    ),
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=5),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.9,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'A_log': dict(decay_mult=0.0)},
    ),
)
