# No result was published. Ours: mmdet's 36 epochs (12 × 3 repeats) with images of 640 to 800 pixels, mixed precision,
# batch 16 (8 GPUs × 2). From ConvNeXt's Cascade Mask R-CNN come AdamW 2e-4, weight decay 0.05, learning rates that fall
# by 0.7 in six groups (there of blocks, here of stages) and drop path 0.4; its crops and its larger box heads do not.
# BatchNorm of stem and steps down is synchronised, since 2 images a GPU are too few for statistics.
_base_ = [
    '../_base_/runtime.py',
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::common/ms-poly_3x_coco-instance.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch='b24',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/fcvit_b24.pth'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
sync_bn = 'torch'

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05),
    constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
