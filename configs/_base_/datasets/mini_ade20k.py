# Generated scenes of 160×128 pixels in the layout of ADE20K (tools/data/make_mini.py), as they are.
_base_ = ['../mmvisattn.py', 'mmseg::_base_/datasets/ade20k.py']

data_root = 'data/mini/ade/ADEChallengeData2016'
metainfo = dict(
    classes=(
        *('sky', 'mountain', 'grass', 'sea', 'sand'),
        *('car', 'airplane', 'boat', 'ball', 'person', 'bench'),
    )
)
scale = (160, 128)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=2, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
