_base_ = './mask-rcnn_defocus-mamba-mini_simple-fpn_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.DefocusViT',
        arch=dict(embed_dims=128, depth=4, num_heads=4, mlp_ratio=2),
        token_order='window',
        pretrain_size=64,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.1,
    ),
)
