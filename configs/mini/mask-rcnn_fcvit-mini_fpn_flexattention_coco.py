# FlexAttention between FPN and heads of the small Mask R-CNN. The scenes are small: the coarse level is stride 16, of
# 10×8 tokens, and a quarter of its cells is selected.
_base_ = './mask-rcnn_fcvit-mini_fpn_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(
            type='mmvisattn.FlexAttentionNeck',
            in_channels=64,
            low_level=2,
            high_level=0,
            num_heads=4,
            mlp_ratio=2,
            select_ratio=0.25,
        ),
    ],
)

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvisattn.PaddingHook'),
    dict(type='mmvisattn.CellLossHook'),
    dict(type='mmvisattn.CellRuleHook'),
]
