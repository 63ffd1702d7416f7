from mmvisattn.datasets import recipe
from mmvisattn.errors import UserError

import numpy as np
import pytest
from mmengine.config import Config


def detector(**changes) -> Config:
    pipeline = [
        dict(type='RandomChoiceResize', scales=[(1333, 640), (1333, 800)]),
        dict(type='RandomCrop', crop_size=(512, 512)),
    ]
    cfg = dict(
        model=dict(
            data_preprocessor=dict(size=(512, 512)),
            bbox_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[8], strides=[4, 8, 16, 32, 64])),
        ),
        train_dataloader=dict(batch_size=2, dataset=dict(pipeline=pipeline)),
        test_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize', scale=(1333, 800), keep_ratio=True)])),
        train_cfg=dict(max_epochs=12, val_interval=1),
        default_hooks=dict(checkpoint=dict(interval=1), logger=dict(interval=50)),
        param_scheduler=[
            dict(type='LinearLR', begin=0, end=500, by_epoch=False),
            dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11]),
        ],
        optim_wrapper=dict(optimizer=dict(lr=0.02)),
        auto_scale_lr=dict(enable=False, base_batch_size=16),
    )
    cfg = Config(cfg)
    cfg.merge_from_dict(changes)
    return cfg


def test_images_that_would_be_enlarged_too_much():
    cfg, choices = detector(), recipe.Choices()
    times = recipe.set_image_scale(cfg, [(128, 128)] * 5, choices)
    assert cfg.test_dataloader.dataset.pipeline[0].scale == (416, 256)
    assert times == 2
    first, crop = cfg.train_dataloader.dataset.pipeline
    assert [tuple(scale) for scale in first.scales] == [(416, 192), (416, 256)]
    assert tuple(crop.crop_size) == tuple(cfg.model.data_preprocessor.size) == (160, 160)
    assert 'image scale 416×256 in place of 1333×800' in choices.lines[-1]


def test_images_as_large_as_the_config_expects():
    cfg, choices = detector(), recipe.Choices()
    assert recipe.set_image_scale(cfg, [(640, 480)], choices) == pytest.approx(800 / 480)
    assert cfg.test_dataloader.dataset.pipeline[0].scale == (1333, 800)
    assert 'as in the config' in choices.lines[-1]


def test_scale_that_the_user_has_set():
    options = {'test_dataloader.dataset.pipeline.0.scale': (1000, 600)}
    cfg, choices = detector(**options), recipe.Choices(options)
    recipe.set_image_scale(cfg, [(64, 64)], choices)
    assert cfg.test_dataloader.dataset.pipeline[0].scale == (1000, 600)
    assert any('left as --cfg-options' in line for line in choices.lines)


@pytest.mark.parametrize(('side', 'expected'), [(40, 8), (12, 4), (6, 2), (1, 2)])
def test_anchors(side, expected):
    cfg, choices = detector(), recipe.Choices()
    recipe.set_anchors(cfg, np.full((50, 2), float(side)), 1.0, choices)
    assert cfg.model.bbox_head.anchor_generator.scales == [expected]
    assert f'the smallest{" anchor" if expected != 8 else ""} has {4 * expected} pixels' in choices.lines[0]


def test_long_boxes_are_told():
    cfg, choices = detector(), recipe.Choices()
    recipe.set_anchors(cfg, np.array([[100.0, 20.0]] * 9), 1.0, choices)
    assert any('100% of the boxes are more than 3:1' in line for line in choices.lines)


def test_length_of_a_training_in_epochs():
    cfg, choices = detector(), recipe.Choices()
    recipe.set_schedule(cfg, 100, choices)  # 50 iterations an epoch, 2000 at least
    assert cfg.train_cfg.max_epochs == 40 and cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 3
    warmup, steps = cfg.param_scheduler
    assert warmup.end == 200 and (steps.end, steps.milestones) == (40, [27, 37])
    assert '40 epochs in place of 12' in choices.lines[0]
    options = {'train_cfg.max_epochs': 24}  # the rates follow what the user sets, too
    cfg = detector(**options)
    recipe.set_schedule(cfg, 100_000, recipe.Choices(options))
    assert cfg.default_hooks.checkpoint.interval == 2
    assert cfg.train_cfg.max_epochs == 24 and cfg.param_scheduler[1].milestones == [16, 22]
    cfg = detector()
    recipe.set_schedule(cfg, 100_000, recipe.Choices())
    assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[0].end == 500


def test_length_of_a_training_in_iterations():
    changes = dict(
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=40000, val_interval=4000),
        param_scheduler=[
            dict(type='LinearLR', begin=0, end=1000, by_epoch=False),
            dict(type='PolyLR', begin=1000, end=40000, by_epoch=False),
        ],
    )
    cfg = detector()
    cfg.train_cfg, cfg.param_scheduler = changes['train_cfg'], changes['param_scheduler']
    recipe.set_schedule(cfg, 40, recipe.Choices())  # 200 epochs of 20
    assert cfg.train_cfg.max_iters == 4000 and cfg.train_cfg.val_interval == 400
    assert [(one.begin, one.end) for one in cfg.param_scheduler] == [(0, 100), (100, 4000)]


def test_learning_rate_by_the_batch(monkeypatch, tmp_path):
    cfg, choices = detector(), recipe.Choices()
    recipe.set_learning_rate(cfg, choices)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    assert 'learning rate 0.02 × 2/16 = 0.0025' in choices.lines[0]
    monkeypatch.setenv('WORLD_SIZE', '4')
    recipe.set_learning_rate(cfg, choices)
    assert '0.02 × 8/16' in choices.lines[-1]
    cfg = detector()
    cfg.pop('auto_scale_lr')
    recipe.set_learning_rate(cfg, choices)
    assert 'does not say for which batch' in choices.lines[-1]
    path = tmp_path / 'fpn_4xb8-40k.py'
    path.touch()
    named = Config(cfg.to_dict(), filename=str(path))
    recipe.set_learning_rate(named, choices)
    assert named.auto_scale_lr.base_batch_size == 32


@pytest.mark.parametrize(('filter_cfg', 'kept'), [({}, 3), (dict(filter_empty_gt=True), 2), (dict(min_size=32), 2)])
def test_images_that_are_filtered_away(filter_cfg, kept):
    cfg, choices = detector(), recipe.Choices()
    cfg.train_dataloader.dataset.filter_cfg = filter_cfg
    heads = [(64, 48, True), (64, 48, False), (64, 16, True)]
    assert recipe.check_filter(cfg, heads, choices) == kept
    assert bool(choices.lines) == (kept < 3)


def test_when_all_are_filtered_away():
    cfg = detector()
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=32)
    with pytest.raises(
        UserError, match=r'all 2 images of training are filtered away: 1 have no objects .* 1 have a side'
    ):
        recipe.check_filter(cfg, [(64, 48, False), (64, 16, True)], recipe.Choices())


def test_a_test_follows_the_training():
    cfg, trained = detector(), detector()
    recipe.set_image_scale(trained, [(128, 128)], recipe.Choices())
    recipe.set_anchors(trained, np.full((9, 2), 12.0), 1.0, recipe.Choices())
    choices = recipe.Choices()
    recipe.follow_training(cfg, trained.to_dict(), choices)
    assert cfg.model == trained.model and cfg.test_dataloader == trained.test_dataloader
    assert 'model.bbox_head.anchor_generator.scales [4.0] in place of [8], as in the training' in '\n'.join(
        choices.lines
    )
    again = recipe.Choices()
    recipe.follow_training(cfg, trained.to_dict(), again)
    assert not again.lines
