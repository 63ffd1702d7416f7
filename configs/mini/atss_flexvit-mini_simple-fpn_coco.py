# ATSS with a small FlexViT on generated scenes of 256×192 pixels with few and small objects, minutes on a CPU:
#   python tools/data/make_mini.py data/mini_sparse --size 256 192 --objects 2 5 --shares 1 0 0 --smallest 12 --crowd 0
# It is to start from the weights of vit-mini_upernet_ade20k.py (`load_from`).
_base_ = [
    '../_base_/runtime.py',
    '../_base_/datasets/mini_coco_instance.py',
    '../_base_/schedules/mini_12e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    type='ATSS',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='mmvisattn.FlexViT',
        arch=dict(embed_dims=128, depth=6, num_heads=4, mlp_ratio=2),
        patch_size=8,
        pretrain_size=128,
        cell_size=1,
        drop_path_rate=0.1,
    ),
    # The map has stride 8, so half its size is stride 16: strides 8, 16 and 32.
    neck=dict(type='mmvisattn.SimpleFPN', in_channels=128, out_channels=64, start_level=2, num_outs=3),
    bbox_head=dict(
        type='ATSSHead',
        num_classes=6,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=3, scales_per_octave=1, strides=[8, 16, 32]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=300, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100),
)

data_root = 'data/mini_sparse/coco/'
boxes = dict(type='LoadAnnotations', with_bbox=True)
resize = dict(type='Resize', scale=(256, 192), keep_ratio=True)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=[_base_.train_pipeline[0], boxes, resize, *_base_.train_pipeline[3:]],
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=[_base_.test_pipeline[0], resize, boxes, *_base_.test_pipeline[3:]],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json', metric='bbox')
test_evaluator = val_evaluator

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs)]
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvisattn.FlexRampHook'),
    dict(type='mmvisattn.CellLossHook'),
    dict(type='mmvisattn.CellRuleHook'),
]
