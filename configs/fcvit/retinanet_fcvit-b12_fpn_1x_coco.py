# No result was published. The recipe of Mask R-CNN with half its learning rate: PVT and PoolFormer, where it comes
# from, train RetinaNet with 1e-4. 12 epochs, mixed precision, batch 16 (8 GPUs × 2).
_base_ = [
    '../_base_/runtime.py',
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch='b12',
        # The pyramid starts at stride 8: the first stage is computed, its output is not used.
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/fcvit_b12.pth'),
    ),
    neck=dict(in_channels=[128, 320, 512], start_level=0),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
)
