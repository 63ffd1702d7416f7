from mmvisattn.datasets import read_detection
from mmvisattn.errors import UserError

import pytest

from .folders import HEIGHT, NAMES, WIDTH, contents, write_image, yolo_folder


def test_boxes_and_names(tmp_path):
    root = yolo_folder(tmp_path)
    before = contents(root)
    data = read_detection(root)
    assert data.format == 'YOLO' and data.classes == list(NAMES)
    assert {name: len(split.images) for name, split in data.splits.items()} == {'train': 3, 'val': 3}
    first = data.splits['train'].annotations[0]
    assert first['bbox'] == [24, 12, 16, 24] and first['area'] == 384 and first['category_id'] == 2
    assert contents(root) == before


def test_outlines(tmp_path):
    data = read_detection(yolo_folder(tmp_path, line='0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75'), with_masks=True)
    first = data.splits['train'].annotations[0]
    assert first['segmentation'] == [[16, 12, 48, 12, 48, 36, 16, 36]]
    assert first['bbox'] == [16, 12, 32, 24] and first['area'] == 32 * 24
    assert data.has_masks


def test_layout_of_roboflow(tmp_path):
    for split in ('train', 'valid'):
        write_image(tmp_path / split / 'images/a.jpg')
        (tmp_path / split / 'labels').mkdir()
        (tmp_path / split / 'labels/a.txt').write_text('0 0.5 0.5 0.5 0.5\n')
    (tmp_path / 'data.yaml').write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['pear']\n")
    data = read_detection(tmp_path)
    assert data.classes == ['pear'] and set(data.splits) == {'train', 'val'}


def test_lists_of_images_and_labels_beside_them(tmp_path):
    for i in range(4):
        write_image(tmp_path / f'obj/{i}.jpg')
        (tmp_path / f'obj/{i}.txt').write_text('0 0.5 0.5 0.5 0.5\n')
    (tmp_path / 'train.txt').write_text('obj/0.jpg\n./obj/1.jpg\nobj/2.jpg\n')
    (tmp_path / 'val.txt').write_text('obj/3.jpg\n')
    (tmp_path / 'data.yaml').write_text('train: train.txt\nval: val.txt\nnames: {0: pear}\n')
    data = read_detection(tmp_path)
    assert {name: len(split.images) for name, split in data.splits.items()} == {'train': 3, 'val': 1}


def test_names_from_a_text_file_or_counted(tmp_path):
    root = yolo_folder(tmp_path, settings=False)
    data = read_detection(root)
    assert data.classes == ['class_0', 'class_1']
    assert any('no names of classes' in note for note in data.notes)
    (root / 'classes.txt').write_text('pear\nplum\n')
    assert read_detection(root).classes == ['pear', 'plum']


def test_images_without_labels_and_splits_that_share_images(tmp_path):
    root = yolo_folder(tmp_path)
    (root / 'labels/train/train0.txt').unlink()
    (root / 'labels/train/train1.txt').write_text('')
    told = '\n'.join(read_detection(root).notes)
    assert 'train: 1 image without a file of labels' in told and 'train: 2 images of 3 without objects' in told
    (root / 'data.yaml').write_text('train: images/train\nval: images/train\ntest: nowhere\nnames: [a, b]\n')
    told = '\n'.join(read_detection(root).notes)
    assert 'val: 3 images also in train' in told and '`test: nowhere` of data.yaml leads to no image' in told


def test_box_beyond_the_border(tmp_path):
    data = read_detection(yolo_folder(tmp_path, line='0 0.9 0.5 0.5 0.5'))
    x, _, width, _ = data.splits['train'].annotations[0]['bbox']
    assert x + width > WIDTH > x and HEIGHT
    assert any('train: 3 objects with a box beyond the border' in note for note in data.notes)


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('0 0.5 0.5 0.5', '3 numbers after the class'),
        ('0 0.5 0.5 0.5 0.5 0.9', '5 numbers after the class'),
        ('0.5 0.5 0.5 0.5 0.5', 'class 0.5 is not a whole number'),
        ('7 0.5 0.5 0.5 0.5', 'class 7, and there are 2 names'),
        ('0 32 24 10 10', 'are these pixels'),
        ('apple 0.5 0.5 0.5 0.5', 'in numbers'),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, words):
    root = yolo_folder(tmp_path)
    (root / 'labels/val/val1.txt').write_text(f'0 0.5 0.5 0.5 0.5\n{line}\n')
    with pytest.raises(UserError, match=words) as error_info:
        read_detection(root)
    assert 'val1.txt:2: ' in str(error_info.value)


def test_key_points_are_refused(tmp_path):
    root = yolo_folder(tmp_path)
    with (root / 'data.yaml').open('a') as file:
        file.write('kpt_shape: [17, 3]\n')
    with pytest.raises(UserError, match='key points'):
        read_detection(root)
