_base_ = './retinanet_fcvit-b12_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='b24', init_cfg=dict(checkpoint='checkpoints/fcvit_b24.pth')),
)
