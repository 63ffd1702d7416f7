_base_ = './fcvit-b12_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    # As ConvNeXt-T, which is of this size.
    backbone=dict(arch='b24', drop_path_rate=0.4, init_cfg=dict(checkpoint='checkpoints/fcvit_b24.pth')),
)
