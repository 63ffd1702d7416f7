# No weights of this form were ever released: pretrain it, or train longer.
_base_ = './defocus-vit-b_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(type='mmvisattn.DefocusRetNet', init_cfg=None),
)
