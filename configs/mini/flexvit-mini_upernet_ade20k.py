# UPerNet with a small FlexViT on generated scenes of 160×128 pixels (tools/data/make_mini.py), minutes on a CPU. Data,
# size and schedule alone differ from the full config; there are no weights to start from. Patches of 8 pixels: the
# smallest objects are not much larger than one of 16.
_base_ = '../flexattention/flexvit-b_upernet_8xb2-160k_ade20k-512x512.py'

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
        arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4, mlp_ratio=2),
        patch_size=8,
        pretrain_size=128,
        num_plain_layers=2,
        cell_size=1,
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    # The map has stride 8, so twice its size is stride 4: strides 4, 8, 16 and 32 as in the full config.
    neck=dict(in_channels=128, out_channels=64, start_level=1),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=num_classes),
    auxiliary_head=dict(in_channels=64, channels=64, num_classes=num_classes),
    test_cfg=dict(_delete_=True, mode='whole'),
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

max_iters = 800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=max_iters, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=100, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=8)
