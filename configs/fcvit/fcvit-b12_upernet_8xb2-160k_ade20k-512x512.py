# No result was published. The recipe is that of ConvNeXt's UPerNet: AdamW 1e-4 with a decay from stage to stage, poly
# 1.0, 160k iterations, drop path, test on crops of 512, batch 16 (8 GPUs × 2). This network has half the blocks of b24
# and takes half of its drop path.
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
        type='mmvisattn.FCViT',
        arch='b12',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/fcvit_b12.pth'),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512], num_classes=150),
    auxiliary_head=dict(in_channels=320, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(clip_grad=None, paramwise_cfg=dict(layer_decay_rate=0.9))
# BatchNorm of the stem and between stages would see two images. (ConvNeXt has none.)
sync_bn = 'torch'
