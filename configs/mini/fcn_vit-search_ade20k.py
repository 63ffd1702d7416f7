# A small plain ViT, which is a FlexViT without hierarchical layers, learns what near and far look like in a search:
#   python tools/data/make_mini.py data/mini_search_near --train 1600 --val 100 --size 96 96 --classes 3 \
#       --objects 4 6 --empty 0 --decoys 2 3 --seed 1
# Two pictures in three are shown from near, the others shrunk four times. The small FlexViTs of the search start from
# its weights, as the full ones start from DeiT's. It is 20 minutes of one core: the direction of slots is learned late.
_base_ = [
    '../_base_/runtime.py',
    '../_base_/datasets/mini_ade20k.py',
    '../_base_/schedules/mini_800.py',
    'mmseg::_base_/default_runtime.py',
]

scale = (192, 192)  # twice the size, of which FlexViT sees the half

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=scale,
    ),
    backbone=dict(
        type='mmvisattn.FlexViT',
        arch=dict(embed_dims=96, depth=6, num_heads=3, mlp_ratio=2),
        patch_size=8,
        pretrain_size=128,
        num_glance_layers=6,
        out_indices=(1,),
    ),
    neck=dict(type='mmvisattn.SimpleFPN', in_channels=96, out_channels=64, start_level=1, num_outs=1),
    decode_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=0,
        channels=64,
        num_convs=1,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

data_root = 'data/mini_search_near/ade/ADEChallengeData2016'
metainfo = dict(classes=('sand', 'rock', 'ball', 'vase', 'clock'))
near_or_far = dict(type='RandomChoiceResize', scales=[scale, scale, (48, 48)], keep_ratio=True)
resize = dict(type='Resize', scale=scale, keep_ratio=True)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        pipeline=[*_base_.train_pipeline[:2], near_or_far, *_base_.train_pipeline[3:]],
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        pipeline=[*_base_.test_pipeline[:1], resize, *_base_.test_pipeline[2:]],
    ),
)
test_dataloader = val_dataloader

max_iters = 3000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
auto_scale_lr = dict(base_batch_size=16)
