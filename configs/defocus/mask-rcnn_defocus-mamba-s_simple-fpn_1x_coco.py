# No weights of this size were released: pretrain it, or train longer.
_base_ = './mask-rcnn_defocus-mamba-b_simple-fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='small', init_cfg=None),
    neck=dict(in_channels=384),
)
