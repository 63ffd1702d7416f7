# Mask R-CNN with a small FlexViT on generated scenes of 160×128 pixels (tools/data/make_mini.py), minutes on a CPU.
# Data, size and schedule alone differ from the full config; there are no weights to start from. Patches of 8 pixels:
# the smallest objects are not much larger than one of 16.
_base_ = '../flexattention/mask-rcnn_flexvit-b_simple-fpn_1x_coco.py'

data_root = 'data/mini/coco/'
metainfo = dict(classes=('person', 'car', 'airplane', 'boat', 'bench', 'sports ball'))
scale = (160, 128)
num_classes = len(metainfo['classes'])

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4, mlp_ratio=2),
        patch_size=8,
        pretrain_size=128,
        num_plain_layers=2,
        cell_size=1,
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    # The map has stride 8, so twice its size is stride 4: strides 4, 8, 16, 32 and 64 as in the full config.
    neck=dict(in_channels=128, out_channels=64, start_level=1),
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

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
    ),
]
auto_scale_lr = dict(base_batch_size=8)
