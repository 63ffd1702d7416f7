"""What the toolboxes answer late or darkly: an error of one line before the first step."""

import json
from types import SimpleNamespace

from mmvisattn.datasets import checks
from mmvisattn.errors import UserError

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from .folders import coco, coco_folder, contents, labels_folder, one, write_coco


def build(dataset: dict, scope: str = 'mmdet') -> tuple[object, Config]:
    """The dataset as the runner's loader would build it, through the check."""
    init_default_scope(scope)
    cfg = Config(dict(train_dataloader=dict(dataset=dict(dataset, pipeline=[]))))

    class Runner:
        @property
        def train_dataloader(self):
            return SimpleNamespace(dataset=DATASETS.build(cfg.train_dataloader.dataset))

    runner = Runner()
    runner.cfg = cfg
    return checks.build_dataset(runner, 'train_dataloader'), cfg


def coco_dataset(root, classes=('apple', 'Äpfel'), **options) -> dict:
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017'),
        **(dict(metainfo=dict(classes=classes)) if classes else {}),
        **options,
    )


def test_classes_that_match_no_category(tmp_path):
    categories = [(1, 'pear'), (2, 'plum')]
    root = write_coco(tmp_path, {'train2017': coco(2, categories=categories)})
    told = r"its classes \(Pear, fig\) match no category of .* \(pear, plum\) \(did you mean 'pear'\?\)"
    with pytest.raises(UserError, match=told):
        build(coco_dataset(root, ('Pear', 'fig'), filter_cfg=dict(filter_empty_gt=True)))
    with pytest.raises(UserError, match=r'no category of .* is a class of CocoDataset \(person, bicycle'):
        build(coco_dataset(root, None, filter_cfg=dict(filter_empty_gt=True)))


def test_all_images_filtered_away(tmp_path):
    with pytest.raises(UserError, match=r"all 4 images of .* are filtered away.*'min_size': 500"):
        build(coco_dataset(coco_folder(tmp_path), filter_cfg=dict(min_size=500)))


def test_no_image_of_the_suffix(tmp_path):
    root = labels_folder(tmp_path)
    dataset = dict(type='BaseSegDataset', img_suffix='.png', data_prefix=dict(img_path=str(root / 'images')))
    with pytest.raises(UserError, match="no file with the suffix '.png' in .*images"):
        build(dataset, 'mmseg')


@pytest.mark.parametrize('key', ['area', 'bbox'])
def test_annotations_that_lack_what_is_read(tmp_path, key):
    with pytest.raises(UserError, match=f"has no '{key}'; give the folder with --data"):
        build(coco_dataset(one(tmp_path, **{key: ...})))


def test_two_annotations_of_one_id(tmp_path):
    with pytest.raises(UserError, match='two annotations of one id'):
        build(coco_dataset(one(tmp_path, id=2)))


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(TypeError, match='no_such_option'):
        build(coco_dataset(coco_folder(tmp_path), no_such_option=1))
    assert contents(tmp_path)


def test_what_is_right_passes(tmp_path):
    dataset, cfg = build(coco_dataset(coco_folder(tmp_path)))
    assert len(dataset) == 4
    checks.check_masks(dataset, cfg)


class Head(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


class Model(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.rpn_head = Head(1)
        self.auxiliary_head = nn.ModuleList([Head(num_classes)])


@pytest.mark.parametrize('number', [1, 3, 80])
def test_heads_of_more_or_fewer_classes(number):
    with pytest.raises(UserError, match=rf'`model.auxiliary_head.0` tells {number} class.* has 2 \(a, b\)'):
        checks.check_classes(Model(number), ('a', 'b'), 'train_dataloader.dataset')
    checks.check_classes(Model(2), ('a', 'b'), 'train_dataloader.dataset')
    checks.check_classes(Model(2), None, 'train_dataloader.dataset')


def test_objects_without_outlines(tmp_path):
    dataset, cfg = build(coco_dataset(one(tmp_path, segmentation=...)))
    cfg.train_dataloader.dataset.pipeline = [dict(type='LoadAnnotations', with_mask=True)]
    with pytest.raises(UserError, match='1 of 4 objects have no outline'):
        checks.check_masks(dataset, cfg)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(area=...), "1 annotation of 4 that CocoMetric reads have no 'area'"),
        (dict(iscrowd=...), "no 'iscrowd'"),
        (dict(segmentation=...), "no 'segmentation'"),
        (dict(id=0), 'has the id 0'),
    ],
)
def test_records_of_the_metric(tmp_path, changes, words):
    from mmdet.evaluation import CocoMetric

    path = one(tmp_path, **changes) / 'annotations/instances_train2017.json'
    with pytest.raises(UserError, match=words):
        checks.check_metric(CocoMetric(ann_file=str(path), metric=['bbox', 'segm']))


def test_records_of_the_metric_that_are_right(tmp_path):
    from mmdet.evaluation import CocoMetric

    path = tmp_path / 'a.json'
    path.write_text(json.dumps(coco(2)))
    checks.check_metric(CocoMetric(ann_file=str(path), metric=['bbox', 'segm']))
    checks.check_metric(object())


def runner(model: nn.Module, images: int, batch: int) -> SimpleNamespace:
    from mmengine.runner import EpochBasedTrainLoop

    warnings: list[str] = []
    loader = SimpleNamespace(batch_size=batch, dataset=range(images), drop_last=False)
    logger = SimpleNamespace(warning=warnings.append, warnings=warnings)
    loop = object.__new__(EpochBasedTrainLoop)
    return SimpleNamespace(model=model, train_dataloader=loader, train_loop=loop, logger=logger)


def pooled() -> nn.Module:
    return nn.ModuleDict({'pool': nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))})


def test_batch_norm_of_one_value():
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        pooled()['pool'](torch.zeros(1, 3, 4, 4))  # what is said before it happens
    with pytest.raises(UserError, match='batches of 1: BatchNorm in `pool` sees one value'):
        checks.check_batch_of_one(runner(pooled(), 9, 1))
    with pytest.raises(UserError, match='9 images in batches of 4, which leaves a last one of one image'):
        checks.check_batch_of_one(runner(pooled(), 9, 4))
    checks.check_batch_of_one(runner(pooled(), 10, 4))


def test_batch_norm_of_a_single_image_is_told():
    plain = runner(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), 9, 1)
    checks.check_batch_of_one(plain)
    assert 'of a single image' in plain.logger.warnings[0]
