# Mask R-CNN with a small FCViT on generated scenes of 160×128 pixels (tools/data/make_mini.py), minutes on a CPU.
# Data, size and schedule alone differ from the full config; there are no weights to start from.
_base_ = '../fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco.py'

data_root = 'data/mini/coco/'
metainfo = dict(classes=('person', 'car', 'airplane', 'boat', 'bench', 'sports ball'))
scale = (160, 128)
num_classes = len(metainfo['classes'])

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=(32, 64, 96, 128), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 4, 4)),
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 96, 128], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        filter_cfg=dict(min_size=8),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# Mixed precision as in the full config needs a GPU.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=3e-3, weight_decay=0.05), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
    ),
]
auto_scale_lr = dict(base_batch_size=8)

# Thin lines and confident predictions: the pictures are small.
visualizer = dict(line_width=1)
default_hooks = dict(visualization=dict(score_thr=0.5))
