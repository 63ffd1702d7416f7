# No result was published. Heads, images (640 to 800 pixels) and schedule (36 epochs: 12 × 3 repeats) are mmdet's; AdamW
# 2e-4 with a decay from stage to stage, drop path and mixed precision are those of Cascade Mask R-CNN with ConvNeXt-T,
# which is of this size. Batch 16 (8 GPUs × 2).
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

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05),
    constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7),
)
# BatchNorm of the stem and between stages would see two images. (ConvNeXt has none.)
sync_bn = 'torch'
auto_scale_lr = dict(enable=False, base_batch_size=16)
