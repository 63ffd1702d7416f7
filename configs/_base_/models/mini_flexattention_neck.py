# FlexAttention behind an FPN of 64 channels, and the hooks that tell it what is padding, teach it and measure it. A
# config has `neck=[_base_.model.neck, dict(**_base_.flexattention, select_ratio=…)]` and adds the hooks to its own.
flexattention = dict(
    type='mmvisattn.FlexAttentionNeck', in_channels=64, low_level=2, high_level=0, num_heads=4, mlp_ratio=2
)
flexattention_hooks = [
    dict(type='mmvisattn.PaddingHook'),
    dict(type='mmvisattn.CellLossHook', labels_first=False),
    dict(type='mmvisattn.CellRuleHook'),
]
