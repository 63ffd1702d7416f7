# FCViT's recipe as published, with FlexAttention between FPN and head; no result with it exists. It refines stride 4,
# the resolution at which Semantic FPN decides, where stride 32 points at.
_base_ = '../fcvit/fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmvisattn.FlexAttentionNeck', in_channels=256, low_level=3, high_level=0, select_ratio=0.1),
    ],
)

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvisattn.PaddingHook'),
    dict(type='mmvisattn.CellLossHook', labels_first=False),
]
