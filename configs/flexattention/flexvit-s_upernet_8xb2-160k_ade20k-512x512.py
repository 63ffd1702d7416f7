_base_ = './flexvit-b_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1, init_cfg=dict(checkpoint='timm://deit_small_patch16_224')),
    neck=dict(in_channels=384),
)
