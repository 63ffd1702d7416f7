# No result of this network exists. Starts from DeiT; AdamW 1e-4 with layer-wise decay, the hierarchical path blended in
# over the first tenth of the training, 12 epochs, batch 16 (8 GPUs × 2).
_base_ = [
    '../_base_/runtime.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw-layer-decay_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FlexViT',
        arch='base',
        zoom=2,
        select_ratio=0.25,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='timm://deit_base_patch16_224'),
    ),
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=5),
)

custom_hooks = [*_base_.custom_hooks, dict(type='mmvisattn.FlexRampHook'), dict(type='mmvisattn.CellLossHook')]
