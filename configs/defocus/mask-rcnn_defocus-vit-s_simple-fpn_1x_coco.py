_base_ = './mask-rcnn_defocus-vit-b_simple-fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='timm://deit_small_patch16_224')),
    neck=dict(in_channels=384),
)
