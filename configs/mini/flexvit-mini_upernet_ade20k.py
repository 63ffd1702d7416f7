# UPerNet with a small FlexViT on generated scenes, minutes on a CPU. Patches of 8 pixels: the smallest objects are not
# much larger than one of 16. The map has stride 8, so twice its size is stride 4: strides 4, 8, 16 and 32 as in the
# full config.
_base_ = [
    '../_base_/runtime.py',
    '../_base_/models/mini_upernet.py',
    '../_base_/datasets/mini_ade20k.py',
    '../_base_/schedules/mini_800.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FlexViT',
        arch=dict(embed_dims=128, depth=6, num_heads=4, mlp_ratio=2),
        patch_size=8,
        pretrain_size=128,
        cell_size=1,
        drop_path_rate=0.1,
    ),
)
custom_hooks = [*_base_.custom_hooks, dict(type='mmvisattn.FlexRampHook'), dict(type='mmvisattn.CellLossHook')]
