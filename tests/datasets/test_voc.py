from mmvisattn.datasets import read_detection
from mmvisattn.errors import UserError

import pytest
from mmengine.registry import DATASETS, init_default_scope

from .folders import HEIGHT, NAMES, WIDTH, contents, voc_folder, voc_xml


def test_lists_classes_and_boxes(tmp_path):
    root = voc_folder(tmp_path)
    before = contents(root)
    data = read_detection(root)
    assert data.format == 'Pascal VOC' and data.classes == sorted(NAMES)
    assert {name: len(split.images) for name, split in data.splits.items()} == {'train': 3, 'val': 1}
    first = data.splits['train'].annotations[0]
    assert first['bbox'] == [8, 6, 20, 16] and first['area'] == 320 and first['category_id'] == 1
    assert not data.has_masks
    assert contents(root) == before


def test_as_stock_reads_it(tmp_path):
    root = voc_folder(tmp_path)
    data = read_detection(root)
    init_default_scope('mmdet')
    dataset = DATASETS.build(
        dict(
            type='XMLDataset',
            data_root=str(root),
            ann_file='ImageSets/Main/train.txt',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=tuple(data.classes)),
            pipeline=[],
        )
    )
    stock = [one for i in range(len(dataset)) for one in dataset.get_data_info(i)['instances']]
    ours = data.splits['train'].annotations
    assert len(stock) == len(ours) == 6
    for theirs, own in zip(stock, ours):
        x, y, width, height = own['bbox']
        assert theirs['bbox'] == [x, y, x + width, y + height]
        assert (theirs['bbox_label'] + 1, theirs['ignore_flag']) == (own['category_id'], own['iscrowd'])
    assert any('marked difficult: regions to ignore' in note for note in data.notes)


def test_without_lists_a_split_is_made(tmp_path):
    data = read_detection(voc_folder(tmp_path, count=5, lists=False))
    assert {name: len(split.images) for name, split in data.splits.items()} == {'train': 4, 'val': 1}


def test_order_of_a_file_of_names(tmp_path):
    root = voc_folder(tmp_path)
    (root / 'labels.txt').write_text('Äpfel\npear\napple\n', encoding='utf-8')
    assert read_detection(root).classes == ['Äpfel', 'pear', 'apple']
    (root / 'labels.txt').write_text('pear\n')
    with pytest.raises(UserError, match='lacks the names apple, Äpfel'):
        read_detection(root)


def test_coordinates_from_0_and_sizes_from_the_files(tmp_path):
    root = voc_folder(tmp_path)
    (root / 'Annotations/0.xml').write_text(voc_xml('0.jpg', [('apple', 0, 0, 10, 10, 0)], size=None))
    data = read_detection(root)
    assert data.splits['train'].annotations[0]['bbox'] == [0, 0, 10, 10]
    assert data.splits['train'].images[0]['width'] == WIDTH and data.splits['train'].images[0]['height'] == HEIGHT
    assert any('coordinates that begin at 0' in note for note in data.notes)


def test_files_without_a_partner_are_told(tmp_path):
    root = voc_folder(tmp_path)
    (root / 'JPEGImages/0.jpg').unlink()
    (root / 'ImageSets/Main/train.txt').write_text('1\n2\n77\n')
    told = '\n'.join(read_detection(root).notes)
    assert '1 XML file without an image' in told and '1 name of train.txt without XML (77)' in told


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('<annotation><object>', 'cannot be read as an annotation of VOC'),
        ('<annotation><object><name>a</name></object></annotation>', 'an object without bndbox'),
        (voc_xml('1.jpg', [('', 1, 1, 5, 5, 0)]), 'an object without a name'),
        (voc_xml('1.jpg', [('a', '', 1, 5, 5, 0)]), 'cannot be read'),
    ],
)
def test_broken_files_are_named(tmp_path, text, words):
    root = voc_folder(tmp_path)
    (root / 'Annotations/1.xml').write_text(text)
    with pytest.raises(UserError, match=words) as error_info:
        read_detection(root)
    assert '1.xml' in str(error_info.value)


def test_years_side_by_side(tmp_path):
    voc_folder(tmp_path / 'VOCdevkit/VOC2007')
    voc_folder(tmp_path / 'VOCdevkit/VOC2012', count=5)
    data = read_detection(tmp_path)
    assert {name: len(split.images) for name, split in data.splits.items()} == {'train': 7, 'val': 2}
    names = [image['file_name'] for split in data.splits.values() for image in split.images]
    assert len(set(names)) == 9  # of equal names each year has its own


def test_folders_of_splits(tmp_path):
    for split in ('train', 'val'):
        voc_folder(tmp_path / split, count=2, lists=False)
    data = read_detection(tmp_path)
    for name, split in data.splits.items():
        assert {image['file_name'] for image in split.images} == {f'{name}/JPEGImages/{i}.jpg' for i in range(2)}
