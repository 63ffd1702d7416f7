# FCViT's recipe as published, with FlexAttention between FPN and heads; no result with it exists. The fine level is
# stride 4, from which the heads take objects of less than 112 pixels; the coarse one is stride 32. A cell has 64 tokens
# of the fine level, so a twentieth of the cells are already three times as many as the coarse level has in all.
_base_ = '../fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmvisattn.FlexAttentionNeck', in_channels=256, low_level=3, high_level=0, select_ratio=0.05),
    ],
)

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvisattn.PaddingHook'),
    dict(type='mmvisattn.CellLossHook', labels_first=False),
]
