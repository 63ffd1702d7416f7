# No result of this network exists. 36 epochs (12 × 3 repeats) with images of 640 to 800 pixels, mixed precision,
# otherwise as Mask R-CNN: DeiT, AdamW 1e-4, layer-wise decay, batch 16 (8 GPUs × 2).
_base_ = [
    '../_base_/runtime.py',
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::common/ms-poly_3x_coco-instance.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FlexViT',
        arch='base',
        zoom=2,
        select_ratio=0.25,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='timm://deit_base_patch16_224'),
    ),
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=5),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
custom_hooks = [*_base_.custom_hooks, dict(type='mmvisattn.FlexRampHook'), dict(type='mmvisattn.CellLossHook')]
auto_scale_lr = dict(enable=False, base_batch_size=16)
