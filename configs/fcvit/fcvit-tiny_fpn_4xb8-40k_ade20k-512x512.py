_base_ = './fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint='checkpoints/fcvit_tiny.pth')),
    neck=dict(in_channels=[32, 64, 160, 320]),
)
