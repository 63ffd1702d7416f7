# Semantic FPN with a small FCViT on generated scenes of 160×128 pixels (tools/data/make_mini.py), minutes on a CPU.
# Data, size and schedule alone differ from the full config; there are no weights to start from.
_base_ = '../fcvit/fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py'

data_root = 'data/mini/ade/ADEChallengeData2016'
metainfo = dict(
    classes=(
        *('sky', 'mountain', 'grass', 'sea', 'sand'),
        *('car', 'airplane', 'boat', 'ball', 'person', 'bench'),
    )
)
scale = (160, 128)
num_classes = len(metainfo['classes'])

model = dict(
    data_preprocessor=dict(size=(128, 160)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=(32, 64, 96, 128), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 4, 4)),
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 96, 128], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=num_classes),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=2, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=6e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=max_iters, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=100, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=8)
