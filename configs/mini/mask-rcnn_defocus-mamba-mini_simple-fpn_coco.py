# Mask R-CNN with a small De-focus Mamba on generated scenes, minutes on a CPU.
_base_ = [
    '../_base_/runtime.py',
    '../_base_/models/mini_mask-rcnn.py',
    '../_base_/datasets/mini_coco_instance_2x.py',
    '../_base_/schedules/mini_12e.py',
    'mmdet::_base_/default_runtime.py',
]

strides = [8, 16, 32, 64]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.DefocusMamba',
        arch=dict(embed_dims=128, depth=4, d_inner=256, d_state=8, dt_rank=8, group_norm_size=64),
        pretrain_size=64,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.1,
    ),
    neck=dict(
        _delete_=True,
        type='mmvisattn.SimpleFPN',
        in_channels=128,
        out_channels=64,
        num_outs=len(strides),
        start_level=1,
    ),
    rpn_head=dict(anchor_generator=dict(strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides, finest_scale=56),
        mask_roi_extractor=dict(featmap_strides=strides, finest_scale=56),
    ),
)
custom_hooks = [*_base_.custom_hooks, dict(type='mmvisattn.ScheduledDropPathHook', start=0.0, end=0.1)]
