# No result of this network exists. Stock DINO (AdamW 1e-4, weight decay 1e-4, clip 0.1, multi-scale augmentation of
# DETR, 12 epochs, batch 16) with layer-wise decay in place of a tenth of the learning rate for the whole backbone.
_base_ = [
    '../_base_/runtime.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
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
    # Strides 8, 16, 32 and 64, as with any backbone of stock DINO.
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=768, out_channels=256, num_outs=4, start_level=1),
)

optim_wrapper = dict(
    constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8),
)
custom_hooks = [*_base_.custom_hooks, dict(type='mmvisattn.FlexRampHook'), dict(type='mmvisattn.CellLossHook')]
auto_scale_lr = dict(enable=False, base_batch_size=16)
