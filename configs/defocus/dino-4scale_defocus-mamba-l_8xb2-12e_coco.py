_base_ = './dino-4scale_defocus-mamba-b_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        pretrain_size=384,
        rope_scale=7.13,
        delta_scale=2.67,
        init_cfg=dict(checkpoint='checkpoints/defocus_mamba_large.pth'),
    ),
    neck=dict(in_channels=1024),
)
