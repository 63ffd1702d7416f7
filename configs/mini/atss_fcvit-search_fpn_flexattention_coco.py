# The same with FlexAttention between FPN and head: from stride 32, of 8×8 tokens, to stride 8. A cell is 32×32 pixels;
# there are 64, of which a tenth is taken.
_base_ = './atss_fcvit-search_fpn_coco.py'

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
            select_ratio=0.1,
        ),
    ],
)

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvisattn.PaddingHook'),
    dict(type='mmvisattn.CellLossHook'),
    dict(type='mmvisattn.CellRuleHook'),
]
