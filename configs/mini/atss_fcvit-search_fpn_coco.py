# ATSS with a small FCViT and FPN in the search of atss_flexvit-search_coco.py, which says how to draw its scenes.
_base_ = './atss_flexvit-search_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch=dict(embed_dims=(32, 64, 96, 128), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 4, 4)),
        out_indices=(1, 2, 3),
    ),
    neck=dict(_delete_=True, type='FPN', in_channels=[64, 96, 128], out_channels=64, num_outs=3),
    bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32])),
)

custom_hooks = _base_.custom_hooks[:-3]  # those of FlexAttention
