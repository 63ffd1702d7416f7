# ATSS with a small FlexViT in a search for few small targets among decoys, minutes on a CPU:
#   python tools/data/make_mini.py data/mini_search --train 4800 --val 300 --size 256 256 --classes 3 --objects 1 2 \
#       --empty 0.1 --decoys 6 10
# A cell is 32×32 pixels and one low-resolution token; there are 64 of them. It is to start from the weights of
# fcn_vit-search_ade20k.py (`load_from`).
_base_ = './atss_flexvit-mini_simple-fpn_coco.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=96, num_heads=3), zoom=4, select_ratio=0.1, drop_path_rate=0.0),
    neck=dict(in_channels=96, num_outs=1),
    bbox_head=dict(num_classes=3, stacked_convs=1, anchor_generator=dict(octave_base_scale=1.5, strides=[8])),
    test_cfg=dict(score_thr=0.02, max_per_img=20),
)

data_root = 'data/mini_search/coco/'
dataset = dict(data_root=data_root, metainfo=dict(classes=('sports ball', 'clock', 'vase')))
scale = (256, 256)
train_pipeline, test_pipeline = (
    [dict(step, scale=scale) if step['type'] == 'Resize' else step for step in pipeline]
    for pipeline in (_base_.train_dataloader.dataset.pipeline, _base_.val_dataloader.dataset.pipeline)
)
# The scenes without targets too.
filter_cfg = dict(filter_empty_gt=False, min_size=1)
train_dataloader = dict(dataset=dict(**dataset, filter_cfg=filter_cfg, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 1
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs)]
