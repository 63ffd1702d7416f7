# Semantic FPN with a small FCViT on generated scenes, minutes on a CPU.
_base_ = [
    '../_base_/runtime.py',
    'mmseg::_base_/models/fpn_r50.py',
    '../_base_/datasets/mini_ade20k.py',
    '../_base_/schedules/mini_800.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 160)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch=dict(embed_dims=(32, 64, 96, 128), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 4, 4)),
    ),
    neck=dict(in_channels=[32, 64, 96, 128], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=11),
)

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
# One rate for all layers and weight decay on all parameters, as published for the full network.
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=6e-3, weight_decay=0.05))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
