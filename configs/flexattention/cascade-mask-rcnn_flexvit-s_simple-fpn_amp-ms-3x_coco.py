_base_ = './cascade-mask-rcnn_flexvit-b_simple-fpn_amp-ms-3x_coco.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1, init_cfg=dict(checkpoint='timm://deit_small_patch16_224')),
    neck=dict(in_channels=384),
)
