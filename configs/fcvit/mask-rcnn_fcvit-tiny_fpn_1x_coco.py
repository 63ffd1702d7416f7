_base_ = './mask-rcnn_fcvit-b12_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint='checkpoints/fcvit_tiny.pth')),
    neck=dict(in_channels=[32, 64, 160, 320]),
)
