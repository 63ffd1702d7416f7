"""Each quirk as a small file: what is read, what is said, and what the stock toolbox makes of it."""

import json

from mmvisattn.datasets import read_detection
from mmvisattn.datasets.write import write_coco as write_files
from mmvisattn.errors import UserError

import pytest
from mmengine.registry import DATASETS, init_default_scope

from .folders import HEIGHT, SQUARE, WIDTH, coco, coco_folder, contents, one, write_coco, write_image

LINE = 'train: 1 object '
OUTSIDE = [WIDTH + 5, 5, 10, 10]
RLE = dict(size=[HEIGHT, WIDTH], counts=[10, 5, HEIGHT * WIDTH - 15])

# Each: changes of an object, what is said, and its record afterwards (None: it is gone).
QUIRKS = {
    'no area': (dict(area=...), "without 'area'; computed", dict(area=320.0)),
    'no area and no outline': (dict(area=..., segmentation=...), "without 'area'; computed", dict(area=320.0)),
    'no iscrowd': (dict(iscrowd=...), "without 'iscrowd'", dict(iscrowd=0)),
    'no box': (dict(bbox=...), "without 'bbox'; taken from the outline", dict(bbox=SQUARE)),
    'box of an RLE': (dict(bbox=[], segmentation=RLE), "without 'bbox'", dict(bbox=[0, 10, 1, 5])),
    'neither box nor outline': (dict(bbox=..., segmentation=...), 'with neither box nor outline', None),
    'beyond the border': (
        dict(bbox=[50, 30, 40, 30]),
        'with a box beyond the border',
        dict(bbox=[50, 30, 40, 30]),
    ),
    'outside': (dict(bbox=OUTSIDE), 'wholly outside', None),
    'tiny': (dict(bbox=[5, 5, 0.5, 9]), 'below a pixel', None),
    'no area at all': (dict(area=0), 'below a pixel', None),
    'crowd': (dict(iscrowd=1, segmentation=RLE), 'crowd regions', dict(iscrowd=1)),
    'ignore': (dict(ignore=1), "with 'ignore'", dict(ignore=1)),
    'polygon of two points': (dict(segmentation=[[1, 1, 9, 9]]), 'fewer than three points', dict(segmentation=None)),
    'odd polygon': (dict(segmentation=[[1, 1, 9, 9, 5, 5, 4]]), 'odd number of coordinates', dict(segmentation=None)),
    'two annotations of one id': (dict(id=2), 'with the id of another; numbered anew', dict(id=1)),
    'id 0': (dict(id=0), 'with an id that is 0', dict(id=1)),
    'image that is not listed': (dict(image_id=99), 'of an image that is not listed', None),
    'category that is not listed': (dict(category_id=99), 'of categories that are not listed (ids 99)', None),
}


@pytest.mark.parametrize('name', QUIRKS)
def test_quirk_is_told_and_read(name, tmp_path):
    changes, words, expected = QUIRKS[name]
    root = one(tmp_path, **changes)
    before = contents(root)
    data = read_detection(root)
    told = [note for note in data.notes if words in note]
    assert len(told) == 1 and told[0].startswith('train: 1 object'), data.notes
    objects = data.splits['train'].annotations
    assert len(objects) == (3 if expected is None else 4)
    for key, value in (expected or {}).items():
        assert objects[0].get(key) == value
    assert contents(root) == before
    assert len({record['id'] for record in objects}) == len(objects)


@pytest.mark.parametrize('name', QUIRKS)
def test_stock_reads_what_is_written(name, tmp_path):
    """mmdet's dataset and metric read the files without an error, with the objects that were counted."""
    data = read_detection(one(tmp_path / 'own', **QUIRKS[name][0]))
    files = write_files(data, tmp_path / 'cache')
    infos = stock(files['train'], data)
    ignored = sum(bool(record.get('ignore')) for record in data.splits['train'].annotations)
    assert sum(len(info['instances']) for info in infos) == len(data.splits['train'].annotations) - ignored


def stock(path, data) -> list[dict]:
    """What mmdet's CocoDataset makes of a file."""
    init_default_scope('mmdet')
    options = dict(data_prefix=dict(img=''), metainfo=dict(classes=tuple(data.classes)), pipeline=[])
    dataset = DATASETS.build(dict(type='CocoDataset', ann_file=str(path), **options))
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def test_clean_files_are_read_as_stock_reads_them(tmp_path):
    root = coco_folder(tmp_path)
    data = read_detection(root)
    infos = stock(root / 'annotations/instances_train2017.json', data)
    labels = [one['category_id'] - 1 for one in data.splits['train'].annotations]
    assert [info['instances'][0]['bbox_label'] for info in infos] == labels
    assert not [note for note in data.notes if 'object' in note]


@pytest.mark.parametrize('segmentation', [..., [], [[1, 1, 9, 9]]])
def test_without_an_outline_an_object_is_a_region_to_ignore_for_a_mask_model(tmp_path, segmentation):
    root = one(tmp_path, segmentation=segmentation)
    data = read_detection(root, with_masks=True)
    first = data.splits['train'].annotations[0]
    assert first['iscrowd'] == 1 and len(first['segmentation'][0]) == 8
    assert any('without an outline, and the model learns outlines; regions to ignore' in note for note in data.notes)
    assert read_detection(root).splits['train'].annotations[0]['iscrowd'] == 0


def test_images_without_objects_are_counted_and_kept(tmp_path):
    content = coco(4)
    del content['annotations'][:2]
    data = read_detection(write_coco(tmp_path, {'train': content, 'val': coco(2, first=10)}))
    assert 'train: 2 images of 4 without objects' in data.notes
    assert len(data.splits['train'].images) == 4


def test_missing_and_broken_images(tmp_path):
    root = coco_folder(tmp_path)
    (root / 'train2017/1.jpg').unlink()
    (root / 'train2017/2.jpg').write_bytes(b'no image')
    data = read_detection(root)
    assert [image['id'] for image in data.splits['train'].images] == [3, 4]
    assert [one['image_id'] for one in data.splits['train'].annotations] == [3, 4]
    told = '\n'.join(data.notes)
    assert 'train: 1 image of 4 not there (1.jpg)' in told and '1 image cannot be read (2.jpg)' in told


def test_images_that_are_all_broken(tmp_path):
    root = coco_folder(tmp_path)
    for path in (root / 'train2017').iterdir():
        path.write_bytes(b'no image')
    with pytest.raises(UserError, match='none of its images can be read'):
        read_detection(root)


def test_sizes(tmp_path):
    content = coco(3)
    del content['images'][0]['width']
    content['images'][1]['width'] = 640
    data = read_detection(write_coco(tmp_path, {'train': content, 'val': coco(2, first=10)}))
    assert all((image['width'], image['height']) == (WIDTH, HEIGHT) for image in data.splits['train'].images)
    told = '\n'.join(data.notes)
    assert (
        '1 image without width and height' in told and 'is another in the annotations than in the file (2.jpg)' in told
    )


@pytest.mark.parametrize('stored', [True, False])
def test_rotation_in_exif(tmp_path, stored):
    root = coco_folder(tmp_path)
    path = root / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    write_image(root / 'train2017/1.jpg', (WIDTH, HEIGHT) if stored else (HEIGHT, WIDTH), orientation=6)
    path.write_text(json.dumps(content))
    data = read_detection(root)
    assert data.ignore_orientation == stored
    assert any('1 image with a rotation in EXIF' in note for note in data.notes)


def test_images_of_16_bits(tmp_path):
    root = coco_folder(tmp_path)
    import cv2
    import numpy as np

    cv2.imwrite(str(root / 'a.png'), np.full((HEIGHT, WIDTH), 300, np.uint16))
    (root / 'a.png').rename(root / 'train2017/1.jpg')
    data = read_detection(root)
    assert any('1 image with more than 8 bits a channel (1.jpg)' in note for note in data.notes)


def test_ids_that_are_no_numbers(tmp_path):
    content = coco(3)
    for image, record in zip(content['images'], content['annotations']):
        image['id'] = record['image_id'] = f'image-{image["id"]}'
    data = read_detection(write_coco(tmp_path, {'train': content, 'val': coco(2, first=10)}))
    assert [one['image_id'] for one in data.splits['train'].annotations] == [1, 2, 3]
    assert any('ids of images that are no numbers' in note for note in data.notes)
