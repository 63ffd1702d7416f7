# UPerNet with a small plain ViT, which is a FlexViT without hierarchical layers: the other small FlexViTs can start
# from its weights, as the full ones start from DeiT's. The scenes are enlarged up to twice, so that it meets objects as
# large as they are in the windows of the full image, and as small as they are in the shrunk one.
_base_ = './flexvit-mini_upernet_ade20k.py'

scale = (320, 256)

model = dict(
    data_preprocessor=dict(size=(256, 320)),
    backbone=dict(num_glance_layers=6, out_indices=(1,)),
)

resize = dict(type='Resize', scale=scale, keep_ratio=True)
random_resize = dict(type='RandomResize', scale=scale, ratio_range=(0.5, 1.0), keep_ratio=True)
train_dataloader = dict(
    dataset=dict(pipeline=[*_base_.train_pipeline[:2], random_resize, *_base_.train_pipeline[3:]]),
)
val_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:1], resize, *_base_.test_pipeline[2:]]),
)
test_dataloader = val_dataloader
