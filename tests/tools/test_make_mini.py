import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import PixelData
from mmseg.datasets import ADE20KDataset
from mmseg.evaluation import IoUMetric
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from tools.data import make_mini as tool
from tools.data.make_mini import MiniError, encode_rle, find_polygons, make_mini
from tools.data.mini_scenes import FINE, Options, draw_scene, to_pixels
from tools.data.mini_shapes import COCO_IDS, SURFACES, THINGS

OPTIONS = Options(train=24, val=16, classes=8, shares=(0.35, 0.45, 0.2), empty=0.15, crowd=0.2, seed=3)
TINY = Options(train=2, val=1, size=(64, 64), shares=(1, 1, 0), seed=5)
SPLITS = (('train', 'training', OPTIONS.train), ('val', 'validation', OPTIONS.val))
ADE = 'ade/ADEChallengeData2016'


@pytest.fixture(scope='module')
def mini(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('make_mini') / 'mini'
    assert make_mini(OPTIONS, folder, workers=2)
    return folder


@pytest.fixture(scope='module')
def coco(mini) -> dict[str, COCO]:
    return {name: COCO(str(mini / f'coco/annotations/instances_{name}2017.json')) for name, *_ in SPLITS}


@pytest.fixture(scope='module')
def scenes():
    """The drawn scenes of validation, by image id."""
    return {1_000_001 + index: draw_scene(OPTIONS, 1, index) for index in range(OPTIONS.val)}


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return np.logical_and(first, second).sum() / np.logical_or(first, second).sum()


# The files


def test_layout(mini):
    assert {path.name for path in mini.iterdir()} == {'ade', 'coco', 'mini.json'}
    for name, long_name, count in SPLITS:
        pictures = sorted((mini / f'coco/{name}2017').iterdir())
        copies = sorted((mini / ADE / 'images' / long_name).iterdir())
        labels = sorted((mini / ADE / 'annotations' / long_name).iterdir())
        assert len(pictures) == len(copies) == len(labels) == count
        assert all(one.read_bytes() == other.read_bytes() for one, other in zip(pictures, copies))
        assert [path.stem for path in copies] == [path.stem for path in labels]
        assert {path.suffix for path in (*pictures, *copies)} == {'.jpg'} and {path.suffix for path in labels} == {
            '.png'
        }
        for picture, label in zip(pictures, labels):
            picture, label = cv2.imread(str(picture)), cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
            assert picture.shape == (128, 160, 3) and picture.std() > 10
            assert label.shape == (128, 160) and label.dtype == np.uint8


def test_same_options_give_the_same_bytes(tmp_path):
    make_mini(TINY, tmp_path / 'first', workers=1)
    make_mini(TINY, tmp_path / 'second', workers=2)
    assert len(digest(tmp_path / 'first')) == 3 + 3 * 3
    assert digest(tmp_path / 'first') == digest(tmp_path / 'second')


def test_every_picture_differs(mini, tmp_path):
    make_mini(replace(TINY, seed=6), tmp_path / 'other')
    pictures = [path for path in (*mini.rglob('coco/*/*.jpg'), *tmp_path.rglob('coco/*/*.jpg'))]
    assert len({path.read_bytes() for path in pictures}) == len(pictures) == 24 + 16 + 3


def test_more_images_leave_the_first_ones_as_they_are(tmp_path):
    make_mini(TINY, tmp_path / 'few')
    make_mini(replace(TINY, train=3), tmp_path / 'more')
    few, more = digest(tmp_path / 'few'), digest(tmp_path / 'more')
    pictures = {name for name in few if not name.endswith('.json')}
    assert {name: few[name] for name in pictures}.items() <= more.items()


# COCO


def test_numbers_and_names_are_those_of_coco(coco):
    for data in coco.values():
        categories = data.loadCats(data.getCatIds())
        assert tuple(category['name'] for category in categories) == CocoDataset.METAINFO['classes']
    numbers = {
        'person': 1,
        'stop sign': 13,
        'bench': 15,
        'sports ball': 37,
        'wine glass': 46,
        'tv': 72,
        'toothbrush': 90,
    }
    assert {name: COCO_IDS[name] for name in numbers} == numbers
    assert not set(coco['train'].getImgIds()) & set(coco['val'].getImgIds())


def test_has_all_that_coco_has(coco):
    annotations = [one for data in coco.values() for one in data.dataset['annotations']]
    areas = np.array([one['area'] for one in annotations if not one['iscrowd']])
    assert (areas < 32**2).sum() > 10 and (areas > 96**2).sum() > 5
    assert ((areas > 32**2) & (areas < 96**2)).sum() > 20
    assert sum(one['iscrowd'] for one in annotations) >= 5
    assert any(len(one['segmentation']) > 1 for one in annotations if not one['iscrowd'])
    assert {one['category_id'] for one in annotations} == {COCO_IDS[thing.coco_name] for thing in THINGS}
    for data in coco.values():
        assert any(len(data.getAnnIds(image)) == 0 for image in data.getImgIds())


def edges(mask):
    """Left, upper, right and lower edge of a mask of the fine canvas, in pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) / FINE for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1 / FINE, rows[-1] + 1 / FINE])


def test_annotations_are_what_was_drawn(coco, scenes):
    """Masks, boxes, areas, classes and crowds against the canvas."""
    data = coco['val']
    overlaps = []
    for image_id, scene in scenes.items():
        annotations = data.loadAnns(data.getAnnIds(image_id))
        assert len(annotations) == len(scene.instances)
        for annotation, instance in zip(annotations, scene.instances):
            assert annotation['category_id'] == COCO_IDS[instance.thing.coco_name]
            assert annotation['iscrowd'] == instance.crowd
            drawn = to_pixels(instance.mask)
            decoded = data.annToMask(annotation).astype(bool)
            overlaps.append(iou(drawn, decoded))
            if instance.crowd:
                assert np.array_equal(drawn, decoded)
            assert annotation['area'] == pytest.approx(instance.mask.sum() / FINE**2, rel=0.05)
            # A box may or may not reach to a speck that is about too small for a polygon.
            count, pieces, stats, _ = cv2.connectedComponentsWithStats(instance.mask.astype(np.uint8))
            specks = [piece for piece in range(count) if stats[piece, cv2.CC_STAT_AREA] < 4 * FINE**2]
            inner, outer = edges(instance.mask & ~np.isin(pieces, specks)), edges(instance.mask)
            x, y, width, height = annotation['bbox']
            assert x >= 0 and y >= 0 and x + width <= 160 and y + height <= 128
            for least, edge, most in zip(
                np.minimum(inner, outer), [x, y, x + width, y + height], np.maximum(inner, outer)
            ):
                assert least - 1 <= edge <= most + 1
    assert len(overlaps) > 30
    assert min(overlaps) > 0.8 and np.mean(overlaps) > 0.95


def test_enough_of_every_object_is_to_be_seen(coco):
    for data in coco.values():
        objects = [one for one in data.dataset['annotations'] if not one['iscrowd']]
        assert min(one['area'] for one in objects) > 0.5 * OPTIONS.smallest**2


@pytest.mark.parametrize('holes', [(), ((20, 20, 40, 30),), ((12, 12, 20, 50), (30, 30, 33, 33), (40, 12, 43, 50))])
def test_polygons_leave_holes_and_gaps_free(holes):
    mask = np.zeros((40 * FINE, 50 * FINE), np.uint8)
    mask[10:60, 10:60] = 1
    mask[80:100, 100:150] = 1  # a second piece, at the edge
    for top, left, bottom, right in holes:
        mask[top:bottom, left:right] = 0
    mask[24:28, 22:26] |= bool(holes)  # an island in the first hole
    polygons = find_polygons(mask)
    drawn = np.zeros_like(mask)
    rle = mask_utils.merge(mask_utils.frPyObjects([(p * FINE).ravel().tolist() for p in polygons], *drawn.shape))
    assert iou(mask, mask_utils.decode(rle)) > 0.97
    area = sum(cv2.contourArea(polygon.astype(np.float32)) for polygon in polygons)
    assert area == pytest.approx(mask.sum() / FINE**2, rel=0.02)


def test_rle_is_cocos():
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 9)) < 0.4, np.ones((3, 4), bool), np.zeros((3, 4), bool), np.eye(5, dtype=bool)):
        rle = encode_rle(mask)
        assert sum(rle['counts']) == mask.size
        compressed = mask_utils.frPyObjects(rle, *mask.shape)
        assert np.array_equal(mask_utils.decode(compressed), mask)
        assert compressed == mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


def coco_dataset(mini: Path, name: str = 'val', **kwargs) -> CocoDataset:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='mmdet.PackDetInputs'),
    ]
    return CocoDataset(
        data_root=str(mini / 'coco'),
        ann_file=f'annotations/instances_{name}2017.json',
        data_prefix=dict(img=f'{name}2017/'),
        pipeline=pipeline,
        **kwargs,
    )


@pytest.mark.parametrize('classes', [None, ('person', 'car', 'airplane', 'boat', 'bench', 'sports ball')])
def test_coco_dataset_reads_it(mini, coco, classes):
    dataset = coco_dataset(mini, test_mode=True, **(dict(metainfo=dict(classes=classes)) if classes else {}))
    names = dataset.metainfo['classes']
    assert len(dataset) == OPTIONS.val
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        annotations = coco['val'].loadAnns(coco['val'].getAnnIds(sample.img_id, iscrowd=False))
        expected = [one for one in annotations if coco['val'].cats[one['category_id']]['name'] in names]
        assert [names[label] for label in sample.gt_instances.labels] == [
            coco['val'].cats[one['category_id']]['name'] for one in expected
        ]
        assert sample.ignored_instances.masks.masks.sum() == sum(
            coco['val'].annToMask(one).sum()
            for one in coco['val'].loadAnns(coco['val'].getAnnIds(sample.img_id, iscrowd=True))
            if coco['val'].cats[one['category_id']]['name'] in names
        )


def test_coco_dataset_leaves_empty_images_out_of_training(mini, coco):
    filled = {one['image_id'] for one in coco['train'].dataset['annotations']}
    dataset = coco_dataset(mini, 'train', filter_cfg=dict(filter_empty_gt=True, min_size=32))
    assert len(dataset) == len(filled) < OPTIONS.train


@pytest.mark.parametrize('classes', [None, ('person', 'car', 'airplane', 'boat', 'bench', 'sports ball')])
def test_coco_metric_gives_full_marks_to_the_truth(mini, coco, scenes, classes):
    """AP of the annotations, of the masks as they were drawn, and of these moved aside."""
    dataset = coco_dataset(mini, test_mode=True, **(dict(metainfo=dict(classes=classes)) if classes else {}))
    names, data = dataset.metainfo['classes'], coco['val']

    def evaluate(move: int, decoded: bool) -> dict[str, float]:
        metric = CocoMetric(str(mini / 'coco/annotations/instances_val2017.json'), metric=['bbox', 'segm'])
        metric.dataset_meta = dataset.metainfo
        for image_id, scene in scenes.items():
            annotations = data.loadAnns(data.getAnnIds(image_id))
            found = [
                (data.annToMask(annotation) if decoded else to_pixels(instance.mask), annotation['bbox'], instance)
                for annotation, instance in zip(annotations, scene.instances)
                if instance.thing.coco_name in names and not instance.crowd
            ]
            boxes = [bbox if decoded else cv2.boundingRect(mask.astype(np.uint8)) for mask, bbox, _ in found]
            predicted = dict(
                bboxes=torch.tensor([(x + move, y, x + move + w, y + h) for x, y, w, h in boxes]).reshape(-1, 4),
                scores=torch.linspace(0.9, 0.5, len(found)),
                labels=torch.tensor([names.index(instance.thing.coco_name) for *_, instance in found]).long(),
                masks=np.array([np.roll(mask, move, axis=1) for mask, *_ in found]).reshape(-1, 128, 160).astype(bool),
            )
            predicted['masks'] = torch.from_numpy(predicted['masks'])
            metric.process({}, [dict(img_id=image_id, ori_shape=(128, 160), pred_instances=predicted)])
        return metric.evaluate(len(scenes))

    truth = evaluate(move=0, decoded=True)
    for kind in ('bbox', 'segm'):
        assert [truth[f'coco/{kind}_mAP{size}'] for size in ('', '_s', '_m', '_l')] == [1, 1, 1, 1]
    drawn = evaluate(move=0, decoded=False)
    assert drawn['coco/bbox_mAP_50'] == drawn['coco/segm_mAP_50'] == 1
    assert drawn['coco/bbox_mAP'] > 0.9 and drawn['coco/segm_mAP'] > 0.9
    assert evaluate(move=40, decoded=True)['coco/bbox_mAP_50'] < 0.3


# ADE20K


def test_labels_are_those_of_ade20k():
    classes = ADE20KDataset.METAINFO['classes']
    assert all(classes[label - 1] == name for name, label in SURFACES.items())
    assert all(classes[thing.ade_label - 1] == thing.ade_name for thing in THINGS)
    assert len({*SURFACES.values(), *(thing.ade_label for thing in THINGS)}) == len(SURFACES) + len(THINGS)


def test_labels_are_what_was_drawn(mini, scenes):
    seen = set()
    for index, scene in enumerate(scenes.values()):
        label = cv2.imread(str(mini / ADE / f'annotations/validation/ADE_val_{index + 1:08}.png'), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(label, scene.labels)
        for instance in scene.instances:
            assert (label[to_pixels(instance.mask)] == instance.thing.ade_label).all()
        seen |= set(np.unique(label).tolist())
    assert seen == {0, *SURFACES.values(), *(thing.ade_label for thing in THINGS)}


def ade_dataset(mini: Path, **kwargs) -> ADE20KDataset:
    return ADE20KDataset(
        data_root=str(mini / ADE),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
            dict(type='mmseg.PackSegInputs'),
        ],
        **kwargs,
    )


DRAWN = (*SURFACES, *(thing.ade_name for thing in THINGS))


@pytest.mark.parametrize('classes', [None, DRAWN])
def test_ade20k_dataset_and_iou_metric_read_it(mini, scenes, classes):
    dataset = ade_dataset(mini, test_mode=True, **(dict(metainfo=dict(classes=classes)) if classes else {}))
    names = dataset.metainfo['classes']
    assert len(dataset) == OPTIONS.val and len(dataset.metainfo['palette']) == len(names) == (13 if classes else 150)
    old = ADE20KDataset.METAINFO['classes']
    new = {old.index(name) + 1: names.index(name) for name in DRAWN}
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dataset.metainfo
    for index, scene in enumerate(scenes.values()):
        sample = dataset[index]['data_samples']
        predicted = np.vectorize(lambda label: new.get(label, 0))(scene.labels)
        truth = np.where(scene.labels == 0, 255, predicted)
        assert np.array_equal(sample.gt_sem_seg.data[0].numpy(), truth)
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(predicted)[None])
        metric.process({}, [sample.to_dict()])
    assert metric.evaluate(len(scenes))['mIoU'] == 100


# Stock configs: nothing but data_root and what depends on it changes


@pytest.mark.parametrize(
    'scope, base, folder, counts',
    [
        ('mmdet', 'coco_instance', 'coco', (OPTIONS.train - 3, OPTIONS.val)),  # training leaves the 3 empty images out
        ('mmseg', 'ade20k', ADE, (OPTIONS.train, OPTIONS.val)),
    ],
)
def test_stock_configs_find_it(mini, tmp_path, scope, base, folder, counts):
    (tmp_path / 'config.py').write_text(f"_base_ = ['{scope}::_base_/datasets/{base}.py']")
    config = Config.fromfile(tmp_path / 'config.py')
    with DefaultScope.overwrite_default_scope(scope):
        for loader, count in zip((config.train_dataloader, config.val_dataloader), counts):
            loader.dataset.data_root = str(mini / folder)
            dataset = DATASETS.build(loader.dataset)
            assert len(dataset) == count
            assert dataset[0]['inputs'].shape[0] == 3


# The command


def run(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, tool.__file__, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


TINY_ARGS = '--train 2 --val 1 --size 64 64 --shares 1 1 0 --seed 5 --workers 1'.split()


def test_command_makes_a_set_once(tmp_path):
    out = tmp_path / 'deep' / 'mini'
    first = run(out, *TINY_ARGS)
    assert first.returncode == 0, first.stderr
    assert 'train' in first.stderr and '2/2' in first.stderr  # the progress bar
    assert '2 images' in first.stdout and f'{out}: finished' in first.stdout
    before = digest(out)
    assert json.loads((out / 'mini.json').read_text())['options']['size'] == [64, 64]

    times = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    second = run(out, *TINY_ARGS)
    assert second.returncode == 0 and 'there already' in second.stdout
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*')}

    other = run(out, *TINY_ARGS, '--seed', 6)
    assert other.returncode == 1
    assert '--seed is 5, not 6' in other.stderr and '--force' in other.stderr and 'Traceback' not in other.stderr
    assert digest(out) == before

    forced = run(out, *TINY_ARGS, '--seed', 6, '--force')
    assert forced.returncode == 0 and digest(out) != before
    assert [path.name for path in out.parent.iterdir()] == ['mini']


def test_force_removes_nothing_but_a_mini_set(tmp_path):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco/precious.jpg').write_bytes(b'1')
    with pytest.raises(MiniError, match='no mini set.*coco'):
        make_mini(TINY, tmp_path, force=True)
    make_mini(TINY, tmp_path / 'mini')
    (tmp_path / 'mini/notes.txt').write_text('mine')
    with pytest.raises(MiniError, match=r'notes\.txt'):
        make_mini(replace(TINY, seed=1), tmp_path / 'mini', force=True)
    assert (tmp_path / 'coco/precious.jpg').is_file() and (tmp_path / 'mini/notes.txt').is_file()


def test_a_set_of_another_version_is_refused(tmp_path, monkeypatch):
    make_mini(TINY, tmp_path / 'mini')
    monkeypatch.setattr(tool, 'VERSION', tool.VERSION + 1)
    with pytest.raises(MiniError, match='version'):
        make_mini(TINY, tmp_path / 'mini')
    assert make_mini(TINY, tmp_path / 'mini', force=True)


@pytest.mark.parametrize('stop', [KeyboardInterrupt, OSError('No space left on device')])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, capsys, stop):
    make_mini(TINY, tmp_path / 'mini')
    before = digest(tmp_path)
    draw = tool.draw_scene

    def interrupted(options, split, index):
        if split == 1:
            raise stop
        return draw(options, split, index)

    monkeypatch.setattr(tool, 'draw_scene', interrupted)
    for name in ('mini', 'new'):
        with pytest.raises(SystemExit) as status:
            tool.main([str(tmp_path / name), *TINY_ARGS, '--force'])
        assert status.value.code not in (0, None)
    assert digest(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['mini']


@pytest.mark.timeout(60)
def test_a_killed_process_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'draw_scene', lambda options, split, index: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SystemExit, match='one of 2 processes was killed.*Give fewer with --workers'):
        tool.main([str(tmp_path / 'mini'), *TINY_ARGS, '--workers', '2'])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'args, message',
    [
        (['--classes', 9], '--classes 9: allowed are 1 to 8'),
        (['--size', 32, 200], 'at least 64'),
        (['--size', 100, 100], 'no room for large objects'),
        (['--objects', 4, 2], '1 <= MIN <= MAX'),
        (['--shares', 0, 0, 0], 'not all of them 0'),
        (['--smallest', 31], '8 to 28'),
        (['--empty', 0.8, '--crowd', 0.3], 'do not exceed 1'),
        (['--train', 0], '--train 0'),
        (['--workers', 0], '--workers 0'),
        (['--seed', -1], '--seed -1'),
    ],
)
def test_wrong_options_are_told(tmp_path, capsys, args, message):
    with pytest.raises(SystemExit) as status:
        tool.main([str(tmp_path / 'mini'), *map(str, args)])
    assert status.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_options_change_the_scenes():
    def objects(options: Options) -> list:
        scenes = [draw_scene(options, 0, index) for index in range(12)]
        return [[one for one in scene.instances if not one.crowd] for scene in scenes]

    base = replace(TINY, size=(128, 96), empty=0, crowd=0)
    few = objects(replace(base, classes=2, objects=(1, 1), shares=(0, 1, 0)))
    assert {one.thing.coco_name for of_image in few for one in of_image} == {'car', 'airplane'}
    assert all(len(of_image) <= 1 for of_image in few)
    assert all(32**2 <= one.mask.sum() / FINE**2 <= 96**2 for of_image in few for one in of_image)
    many = objects(replace(base, objects=(5, 5), shares=(1, 0, 0), smallest=24))
    assert np.mean([len(of_image) for of_image in many]) > 4
    assert all((0.7 * 24) ** 2 < one.mask.sum() / FINE**2 < 32**2 for of_image in many for one in of_image)
