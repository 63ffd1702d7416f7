# Starts from DeiT, which saw the whole image at once and told positions by an embedding; here the filter takes over.
_base_ = './mask-rcnn_defocus-mamba-b_simple-fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvisattn.DefocusViT',
        arch='base',
        token_order='window',
        pretrain_size=224,
        rope_scale=20.0,
        delta_scale=4.57,
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='timm://deit_base_patch16_224'),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))  # half as many layers
