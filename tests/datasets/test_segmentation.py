"""Labels of pixels as users have them: what is read, what the network sees, and what is said."""

from pathlib import Path

from mmvisattn.datasets import read_segmentation
from mmvisattn.datasets.tables import segmentation_table
from mmvisattn.datasets.write import write_labels
from mmvisattn.errors import UserError

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from .folders import HEIGHT, WIDTH, contents, labels_folder, write_image, write_label

RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)


def seen(data, cache: Path) -> list[int]:
    """The labels that the network sees of the first image: stock dataset and loading on the files that are written."""
    folders = write_labels(data, cache)
    init_default_scope('mmseg')
    dataset = DATASETS.build(
        dict(
            type='BaseSegDataset',
            img_suffix=folders['train'].suffix,
            seg_map_suffix='.png',
            data_prefix=dict(img_path=str(folders['train'].images), seg_map_path=str(folders['train'].labels)),
            metainfo=dict(classes=tuple(data.classes), palette=data.palette),
            reduce_zero_label=data.reduce_zero_label,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        )
    )
    labels = dataset[0]['gt_seg_map']
    assert labels.shape == (HEIGHT, WIDTH)
    return sorted(np.unique(labels).tolist())


# Each: values, names, --zero-label, what is said, classes, and labels that the network sees.
MEANINGS = {
    'counted': (
        (0, 1, 2),
        (),
        None,
        '0 is a class, called background (34.4%',
        ['background', 'class_1', 'class_2'],
        [0, 1, 2],
    ),
    'named': ((0, 1, 2), 'abc', None, '0 is a class: a', ['a', 'b', 'c'], [0, 1, 2]),
    'void 255': ((0, 1, 255), 'ab', None, '255 is void (3', ['a', 'b'], [0, 1, 255]),
    'one name fewer than labels': (
        (0, 1, 2),
        'ab',
        None,
        'labels to 2 and 2 names: 0 is void',
        ['a', 'b'],
        [0, 1, 255],
    ),
    'from 1': ((1, 2, 3), (), None, 'labels begin at 1: 0 is void', ['class_1', 'class_2', 'class_3'], [0, 1, 2]),
    'zero void by its name': ((0, 1, 2), ('void', 'b', 'c'), None, '0 is void: its name', ['b', 'c'], [0, 1, 255]),
    'zero void by the flag': ((0, 1, 2), 'abc', 'void', '0 is void: --zero-label', ['b', 'c'], [0, 1, 255]),
    'zero class by the flag': ((0, 1, 2), 'ab', 'class', '0 is a class', ['background', 'a', 'b'], [0, 1, 2]),
    'counted, zero void': ((0, 1, 2), (), 'void', '0 is void', ['class_1', 'class_2'], [0, 1, 255]),
    'gaps': ((0, 50, 200), (), None, 'numbered without gaps', ['background', 'class_50', 'class_200'], [0, 1, 2]),
    'gaps, zero void': ((0, 50, 200), (), 'void', 'numbered without gaps', ['class_50', 'class_200'], [0, 1, 255]),
    'binary': ((0, 255), (), None, 'labels of 0 and 255 alone', ['background', 'foreground'], [0, 1]),
    'binary, named': ((0, 255), ('crack',), None, 'labels of 0 and 255 alone', ['background', 'crack'], [0, 1]),
    'one name': ((0, 1), ('crack',), None, '0 is a class, called background', ['background', 'crack'], [0, 1]),
    '16 bits': ((0, 300, 400), (), None, 'numbered without gaps', ['background', 'class_300', 'class_400'], [0, 1, 2]),
    'colours': (
        (BLACK, RED, GREEN),
        (),
        None,
        '3 colours counted',
        ['background', 'colour_00ff00', 'colour_ff0000'],
        [0, 1, 2],
    ),
    'colours, black void': (
        (BLACK, RED, GREEN),
        (),
        'void',
        'black is void',
        ['colour_00ff00', 'colour_ff0000'],
        [0, 1, 255],
    ),
    'named colours': (
        (WHITE, RED, GREEN),
        ('road,255,0,0', 'tree,0,255,0'),
        None,
        'the colour (255, 255, 255) is not in the list of classes: void',
        ['road', 'tree'],
        [0, 1, 255],
    ),
    'grey as RGB': (((0,) * 3, (1,) * 3, (2,) * 3), 'abc', None, '0 is a class: a', ['a', 'b', 'c'], [0, 1, 2]),
}


@pytest.mark.parametrize('name', MEANINGS)
def test_meaning_of_labels(name, tmp_path):
    values, names, zero, words, classes, expected = MEANINGS[name]
    root = labels_folder(tmp_path / 'own', values, names)
    before = contents(root)
    data = read_segmentation(root, zero)
    assert data.classes == classes
    assert len(data.palette) == len(classes)
    assert any(words in note for note in data.notes), data.notes
    assert seen(data, tmp_path / 'cache') == expected
    assert contents(root) == before


def test_palette_gives_the_colours(tmp_path):
    root = labels_folder(tmp_path / 'own', (0, 1, 255), palette=[*BLACK, *RED])
    data = read_segmentation(root)
    assert data.format == 'palette' and data.palette == [BLACK, RED]
    assert not data.convert  # mmseg reads the numbers of such files
    assert seen(data, tmp_path / 'cache') == [0, 1, 255]


def test_palettes_of_different_order_are_read_by_their_colours(tmp_path):
    root = labels_folder(tmp_path / 'own', (0, 1), palette=[*BLACK, *RED])
    write_label(root / 'labels/0.png', (1, 0), palette=[*RED, *BLACK])
    data = read_segmentation(root)
    assert any('different palettes' in note for note in data.notes)
    folders = write_labels(data, tmp_path / 'cache')
    labels = [np.asarray(Image.open(path)) for folder in folders.values() for path in folder.labels.iterdir()]
    assert all(np.array_equal(label, labels[0]) for label in labels)


def test_histogram_tells_what_was_read_and_what_the_network_sees(tmp_path):
    data = read_segmentation(labels_folder(tmp_path, (0, 1, 2), 'ab'))
    lines = [line.split() for line in segmentation_table(data).splitlines()]
    assert lines[1] == ['0', '34.38%', '4', '255', 'void']
    assert lines[2] == ['1', '34.38%', '4', '0', 'a', '0.95']
    assert lines[3] == ['2', '31.25%', '4', '1', 'b', '1.05']


# Each: path of an image and of its labels.
LAYOUTS = {
    'mmseg': ('img_dir/{split}/a.jpg', 'ann_dir/{split}/a.png'),
    'ade': ('images/{split}/a.jpg', 'annotations/{split}/a.png'),
    'split above': ('{split}/images/a.jpg', '{split}/masks/a.png'),
    'split in the name': ('{split}_images/a.jpg', '{split}_labels/a.png'),
    'camvid': ('{split}/a.png', '{split}annot/a.png'),
    'camvid 2': ('{split}/a.png', '{split}_labels/a_L.png'),
    'suffixes': ('images/{split}/a_image.jpg', 'labels/{split}/a_mask.png'),
    'cityscapes': ('leftImg8bit/{split}/ulm/a_leftImg8bit.png', 'gtFine/{split}/ulm/a_gtFine_labelTrainIds.png'),
    'folders around': ('segmentation_data/images/{split}/a.jpg', 'segmentation_data/masks/{split}/a.png'),
    'labels inside': ('my_labels/{split}/images/a.jpg', 'my_labels/{split}/gt/a.png'),
    'side by side': ('{split}/a.jpg', '{split}/a.png'),
    'side by side, named': ('{split}/a.png', '{split}/a_mask.png'),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_layout(name, tmp_path):
    image, label = LAYOUTS[name]
    for split in ('train', 'val'):
        for stem in ('a', 'b'):
            write_image(tmp_path / image.format(split=split).replace('/a', f'/{stem}'))
            write_label(tmp_path / label.format(split=split).replace('/a', f'/{stem}'), (0, 1))
    pairs = read_segmentation(tmp_path).pairs
    assert {split: len(found) for split, found in pairs.items()} == {'train': 2, 'val': 2}
    assert all(image.stem[0] == label.stem[0] for found in pairs.values() for image, label in found)


def test_lists_of_voc(tmp_path):
    for i in range(4):
        write_image(tmp_path / f'JPEGImages/{i}.jpg')
        write_label(tmp_path / f'SegmentationClass/{i}.png', (0, 1))
        write_label(tmp_path / f'SegmentationObject/{i}.png', (0, 7))
    lists = tmp_path / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('0\n1\n2\n')
    (lists / 'val.txt').write_text('3\n')
    pairs = read_segmentation(tmp_path).pairs
    assert {split: len(found) for split, found in pairs.items()} == {'train': 3, 'val': 1}


def test_cityscapes_trains_on_train_ids(tmp_path):
    for split in ('train', 'val'):
        write_image(tmp_path / f'leftImg8bit/{split}/ulm/a_leftImg8bit.png')
        for kind, values in (
            ('labelTrainIds', (0, 1)),
            ('labelIds', (7, 8)),
            ('color', (5, 6)),
            ('instanceIds', (1, 2)),
        ):
            write_label(tmp_path / f'gtFine/{split}/ulm/a_gtFine_{kind}.png', values)
    data = read_segmentation(tmp_path)
    assert set(data.histogram) == {0, 1}


def test_images_of_one_name_in_several_folders_and_of_several_kinds(tmp_path):
    for folder in ('x', 'y'):
        write_image(tmp_path / f'own/images/{folder}/a.jpg')
        write_image(tmp_path / f'own/images/{folder}/b.png')
        for stem in 'ab':
            write_label(tmp_path / f'own/labels/{folder}/{stem}.png', (0, 1))
    data = read_segmentation(tmp_path / 'own', val_share=0.25)
    folders = write_labels(data, tmp_path / 'cache')
    assert folders['train'].suffix == '.png'
    assert len(list(folders['train'].images.iterdir())) == len(list(folders['train'].labels.iterdir())) == 3
    assert write_labels(data, tmp_path / 'cache') == folders  # made once


def test_files_without_a_partner_are_told(tmp_path):
    root = labels_folder(tmp_path)
    write_image(root / 'images/more.jpg')
    write_label(root / 'labels/lost.png', (0, 1))
    told = '\n'.join(read_segmentation(root).notes)
    assert '1 image without labels (images/more.jpg)' in told and '1 file of labels without an image' in told


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('a\nb\nc', ['a', 'b', 'c']),
        ('0 a\n1 b\n2 c', ['a', 'b', 'c']),
        ('0: a\n1: b\n2: traffic light', ['a', 'b', 'traffic light']),
        ('1\ta\n2\tb', ['a', 'b']),
        ('traffic light\nb\nc', ['traffic light', 'b', 'c']),
    ],
)
def test_files_of_names(tmp_path, text, names):
    root = labels_folder(tmp_path, range(len(names)))
    (root / 'classes.txt').write_text(text, encoding='utf-8-sig')
    assert read_segmentation(root).classes == names


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('class_dict.csv', 'name,r,g,b\nroad,255,0,0\ntree,0,255,0\n'),
        ('labelmap.txt', '# label:color_rgb:parts:actions\nroad:255,0,0::\ntree:0,255,0::\n'),
        ('classes.txt', 'road 255 0 0\ntree 0 255 0\n'),
        ('classes.txt', '255 0 0 road\n0 255 0 tree\n'),
    ],
)
def test_files_of_colours(tmp_path, name, text):
    root = labels_folder(tmp_path, (RED, GREEN))
    (root / name).write_text(text)
    data = read_segmentation(root)
    assert data.classes == ['road', 'tree'] and data.palette == [RED, GREEN]


def test_names_as_json(tmp_path):
    root = labels_folder(tmp_path)
    (root / 'id2label.json').write_text('{"0": "a", "1": "b", "2": "c"}')
    assert read_segmentation(root).classes == ['a', 'b', 'c']


@pytest.mark.parametrize(
    ('values', 'names', 'words'),
    [
        ((0, 1, 9), 'ab', 'has label 9, and there are 2 names'),
        ((1, 255), (), 'one class .class_1. and void'),
        ((255, 255), (), '255 alone'),
        ((RED, GREEN, (1, 2, 3)), ('road,255,0,0', 'tree,0,255,0'), r'the colour \(1, 2, 3\)'),
        ((RED, GREEN), ('road', 'tree'), 'the names come without'),
    ],
)
def test_labels_that_cannot_be(tmp_path, values, names, words):
    with pytest.raises(UserError, match=words):
        read_segmentation(labels_folder(tmp_path, values, names))


def test_labels_of_another_size(tmp_path):
    root = labels_folder(tmp_path)
    write_image(root / 'images/0.jpg', (WIDTH, HEIGHT + 2))
    with pytest.raises(
        UserError, match='1 image of another size than the labels, such as .*0.jpg of 64×50 .* of 64×48'
    ):
        read_segmentation(root)


def test_smeared_labels(tmp_path):
    for i in range(3):
        write_image(tmp_path / f'images/{i}.jpg')
        path = tmp_path / f'labels/{i}.jpg'
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(path)
    with pytest.raises(UserError, match='JPEG smears values'):
        read_segmentation(tmp_path)


def test_smoothed_masks(tmp_path):
    root = labels_folder(tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 10:30] = 255
    mask[9, 9 : 9 + 30] = np.arange(5, 245, 8)
    Image.fromarray(mask).save(root / 'labels/0.png')
    for i in (1, 2, 3):
        write_label(root / f'labels/{i}.png', (0, 255))
    with pytest.raises(UserError, match=r'32 values \(such as in .*0\.png\), most of them few pixels'):
        read_segmentation(root)


def test_broken_labels_and_none(tmp_path):
    root = labels_folder(tmp_path)
    (root / 'labels/0.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'0\.png cannot be read as an image'):
        read_segmentation(root)
    write_image(tmp_path / 'other/a.jpg')
    with pytest.raises(UserError, match='no image has labels of its pixels'):
        read_segmentation(tmp_path / 'other')


def test_classes_of_a_trained_model(tmp_path):
    root = labels_folder(tmp_path / 'own', (0, 1, 2), 'abc')
    data = read_segmentation(root, classes=['c', 'x', 'a'])
    assert data.classes == ['c', 'x', 'a']
    assert seen(data, tmp_path / 'cache') == [0, 2, 255]
    assert any('the model does not know b' in note for note in data.notes)


def test_rotation_in_exif(tmp_path):
    root = labels_folder(tmp_path)
    write_image(root / 'images/0.jpg', (WIDTH, HEIGHT), orientation=6)
    assert read_segmentation(root).ignore_orientation
    write_image(root / 'images/0.jpg', (HEIGHT, WIDTH), orientation=6)
    assert not read_segmentation(root).ignore_orientation
