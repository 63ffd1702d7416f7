# The detector of the demo: fewer and simpler scenes than those of the other configs here, and a shorter schedule.
#   python tools/data/make_mini.py data/demo --size 128 96 --classes 4 --objects 1 2 --shares 0 1 0 --empty 0 --crowd 0
_base_ = './mask-rcnn_fcvit-mini_fpn_coco.py'

data_root = 'data/demo/coco/'
resize = dict(type='Resize', scale=(128, 96), keep_ratio=True)

# The mask head, which sees the objects alone, is the dearest part.
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=32, pos_fraction=0.25))))

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=[*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[3:]],
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=[*_base_.test_pipeline[:1], resize, *_base_.test_pipeline[2:]],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs)]
