# The segmentor of the demo: fewer and simpler scenes than those of the other configs here, and a shorter schedule.
#   python tools/data/make_mini.py data/demo --size 128 96 --classes 4 --objects 1 2 --shares 0 1 0 --empty 0 --crowd 0
_base_ = './fcvit-mini_fpn_ade20k.py'

data_root = 'data/demo/ade/ADEChallengeData2016'
resize = dict(type='Resize', scale=(128, 96), keep_ratio=True)

model = dict(data_preprocessor=dict(size=(96, 128)))

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

max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
