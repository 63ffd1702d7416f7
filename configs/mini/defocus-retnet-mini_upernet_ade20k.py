_base_ = './defocus-mamba-mini_upernet_ade20k.py'

model = dict(
    backbone=dict(
        type='mmvisattn.DefocusRetNet',
        arch=dict(_delete_=True, embed_dims=128, depth=4, num_heads=4, mlp_ratio=2),
    ),
)
