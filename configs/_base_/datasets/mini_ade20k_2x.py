# The same, enlarged twice for networks with patches of 16 pixels: the smallest objects are about as large as a patch.
_base_ = './mini_ade20k.py'

resize = dict(type='Resize', scale=(320, 256), keep_ratio=True)

train_dataloader = dict(
    dataset=dict(pipeline=[*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[3:]]),
)
val_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:1], resize, *_base_.test_pipeline[2:]]),
)
test_dataloader = val_dataloader
