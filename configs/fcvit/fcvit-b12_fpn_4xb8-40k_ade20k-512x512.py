# As published: Semantic FPN, AdamW 2e-4, weight decay 1e-4 on all parameters, poly 0.9 to 0 without warm-up, 40k
# iterations, batch 32, crop 512×512, test images resized to 2048×512 with both sides rounded up to a multiple of 32.
# (Published with 8 GPUs × 4; here 4 × 8.)
_base_ = [
    '../_base_/runtime.py',
    'mmseg::_base_/models/fpn_r50.py',
    '../_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmvisattn.FCViT',
        arch='b12',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/fcvit_b12.pth'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=8)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
