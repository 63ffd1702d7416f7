# No weights of this size were released: pretrain it, or train longer.
_base_ = './defocus-mamba-b_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='small', init_cfg=None),
    neck=dict(in_channels=384),
)
