# mmseg's ADE20K, where the dataset alone says that label 0 is void: said by the pipeline too, mmseg warns of it.
_base_ = ['../mmvisattn.py', 'mmseg::_base_/datasets/ade20k.py']

train_pipeline = [_base_.train_pipeline[0], dict(type='LoadAnnotations'), *_base_.train_pipeline[2:]]
test_pipeline = [*_base_.test_pipeline[:2], dict(type='LoadAnnotations'), *_base_.test_pipeline[3:]]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
