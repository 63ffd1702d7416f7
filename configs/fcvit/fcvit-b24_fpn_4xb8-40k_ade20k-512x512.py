_base_ = './fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='b24', init_cfg=dict(checkpoint='checkpoints/fcvit_b24.pth')),
)
