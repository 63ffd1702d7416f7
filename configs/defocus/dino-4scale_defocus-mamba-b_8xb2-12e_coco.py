# As released: AdamW 2e-4, a tenth of that for the backbone and the sampling offsets, drop path 0.5, the multi-scale
# augmentation of DETR, 12 epochs, batch 16 (8 GPUs × 2), single precision.
_base_ = [
    '../_base_/runtime.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
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
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=4),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        # The longest key that occurs in a name decides alone. In the backbone only matrices and kernels decay.
        custom_keys={
            'backbone': dict(lr_mult=0.1, decay_mult=0.0),
            'patch_embed.projection.weight': dict(lr_mult=0.1),
            'mixer.in_proj.weight': dict(lr_mult=0.1),
            'mixer.conv1d.weight': dict(lr_mult=0.1),
            'mixer.x_proj.weight': dict(lr_mult=0.1),
            'mixer.dt_proj.weight': dict(lr_mult=0.1),
            'mixer.out_proj.weight': dict(lr_mult=0.1),
            'sampling_offsets': dict(lr_mult=0.1, decay_mult=0.0),
            'sampling_offsets.weight': dict(lr_mult=0.1),
        },
    ),
)
