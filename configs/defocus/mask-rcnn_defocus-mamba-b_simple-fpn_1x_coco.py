# No result was published. Ours: AdamW 1e-4 with layer-wise decay, drop path 0.5 as in the released detectors, 12
# epochs, batch 16 (8 GPUs × 2).
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
        type='mmvisattn.DefocusMamba',
        arch='base',
        token_order='window',
        pretrain_size=224,
        rope_scale=20.0,
        delta_scale=4.57,
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/defocus_mamba_base.pth'),
    ),
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=5),
)

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
