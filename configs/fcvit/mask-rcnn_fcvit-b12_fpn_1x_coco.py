# As published: AdamW 2e-4, weight decay 1e-4 on all parameters, mixed precision, 12 epochs, batch 16 (8 GPUs × 2).
_base_ = [
    '../_base_/runtime.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch='b12',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/fcvit_b12.pth'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
)
