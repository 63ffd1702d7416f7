# No result was published. Ours: AdamW 1e-4 with layer-wise decay, poly 1.0, drop path 0.5 as in the released detectors,
# 160k iterations, batch 16 (8 GPUs × 2). The paper's auxiliary loss on pooled features tells here which classes are in
# the image.
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
        type='mmvisattn.DefocusMamba',
        arch='base',
        token_order='window',
        pretrain_size=224,
        # For crops of 512 pixels: the ratio of the sides, and its square. 37 % of the tokens are padding; crops of 448
        # have none, with 4.0 and 2.0 here (see the README).
        rope_scale=5.22,
        delta_scale=2.29,
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/defocus_mamba_base.pth'),
    ),
    neck=dict(type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256, 256, 256, 256], num_classes=150),
    auxiliary_head=[
        dict(_base_.model.auxiliary_head, in_channels=256, num_classes=150),
        dict(type='mmvisattn.ClassPresenceHead', in_channels=256, in_index=2, num_classes=150, loss_weight=0.4),
    ],
    # Sequences of the length that the scales are for, also where the image is wider.
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
