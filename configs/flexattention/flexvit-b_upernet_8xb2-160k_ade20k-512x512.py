# No result of this network exists. Starts from DeiT; AdamW 1e-4 with layer-wise decay, the hierarchical path blended in
# over the first tenth of the training, poly 1.0, 160k iterations, batch 16 (8 GPUs × 2).
_base_ = [
    '../_base_/runtime.py',
    'mmseg::_base_/models/upernet_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw-layer-decay_160k.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FlexViT',
        arch='base',
        zoom=2,
        select_ratio=0.25,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='timm://deit_base_patch16_224'),
    ),
    neck=dict(type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256, 256, 256, 256], num_classes=150),
    auxiliary_head=dict(in_channels=256, num_classes=150),
    # The position embedding spans the image, so test on crops as in training.
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)

train_dataloader = dict(batch_size=2)
custom_hooks = [*_base_.custom_hooks, dict(type='mmvisattn.FlexRampHook'), dict(type='mmvisattn.CellLossHook')]
