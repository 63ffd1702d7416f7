# Mask R-CNN with a small FCViT on generated scenes, minutes on a CPU.
_base_ = [
    '../_base_/runtime.py',
    '../_base_/models/mini_mask-rcnn.py',
    '../_base_/datasets/mini_coco_instance.py',
    '../_base_/schedules/mini_12e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch=dict(embed_dims=(32, 64, 96, 128), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 4, 4)),
    ),
    neck=dict(in_channels=[32, 64, 96, 128], out_channels=64),
)

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# One rate for all layers and weight decay on all parameters, as published for the full network.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs)]

# Thin lines and confident predictions: the pictures are small.
visualizer = dict(line_width=1)
default_hooks = dict(visualization=dict(score_thr=0.5))
