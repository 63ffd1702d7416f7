# No weights of this form were ever released: pretrain it, or train longer.
_base_ = './mask-rcnn_defocus-vit-b_simple-fpn_1x_coco.py'

model = dict(
    backbone=dict(type='mmvisattn.DefocusRetNet', init_cfg=None),
)
