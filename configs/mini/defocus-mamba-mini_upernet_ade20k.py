# UPerNet with a small De-focus Mamba on generated scenes of 160×128 pixels (tools/data/make_mini.py), minutes on a CPU.
# Data, size and schedule alone differ from the full config; there are no weights to start from. The scenes are enlarged
# twice: their smallest objects are about as large as a patch.
_base_ = '../defocus/defocus-mamba-b_upernet_8xb2-160k_ade20k-512x512.py'

data_root = 'data/mini/ade/ADEChallengeData2016'
metainfo = dict(
    classes=(
        *('sky', 'mountain', 'grass', 'sea', 'sand'),
        *('car', 'airplane', 'boat', 'ball', 'person', 'bench'),
    )
)
scale = (320, 256)
num_classes = len(metainfo['classes'])

model = dict(
    data_preprocessor=dict(size=(256, 320)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=4, d_inner=256, d_state=8, dt_rank=8, group_norm_size=64),
        pretrain_size=64,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    neck=dict(in_channels=128, out_channels=64, start_level=1),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=num_classes),
    auxiliary_head=[
        dict(_base_.model.auxiliary_head[0], in_channels=64, channels=64, num_classes=num_classes),
        dict(_base_.model.auxiliary_head[1], in_channels=64, num_classes=num_classes),
    ],
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
optim_wrapper = dict(optimizer=dict(lr=3e-3), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=max_iters, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=100, max_keep_ckpts=2))
custom_hooks = [
    dict(type='mmvisattn.CheckpointReportHook'),
    dict(type='mmvisattn.ScheduledDropPathHook', start=0.0, end=0.1, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=8)
