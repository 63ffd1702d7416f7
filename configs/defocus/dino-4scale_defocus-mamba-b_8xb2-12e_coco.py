# As released: AdamW 2e-4, a tenth of that for the backbone, the sampling offsets and the reference points, weight decay
# 1e-4 on all parameters, drop path 0.5, the multi-scale augmentation of DETR, 12 epochs, batch 16 (8 GPUs × 2), single
# precision. Position encoding, weight of the class loss and number of denoising queries are those of Deformable DETR
# and DINO, from which mmdet's config departs.
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
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(loss_cls=dict(loss_weight=2.0)),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=300)),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1),
        }
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
