import json

from mmvisattn.datasets import read_detection
from mmvisattn.errors import UserError

import pytest

from .folders import NAMES, coco, coco_folder, write_coco, write_image


def test_names_of_files_and_folders_are_free(tmp_path):
    for split, folder, name in (('training', 'A', 'my_training'), ('valid', 'B', 'anything-valid')):
        content = coco(3)
        for image in content['images']:
            write_image(tmp_path / folder / image['file_name'])
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
        assert split
    data = read_detection(tmp_path)
    assert data.format == 'COCO' and data.classes == list(NAMES)
    assert {name: len(split.images) for name, split in data.splits.items()} == {'train': 3, 'val': 3}
    assert data.splits['train'].image_root == tmp_path / 'A'


def test_files_that_say_all_are_read_in_place(tmp_path):
    data = read_detection(coco_folder(tmp_path))
    assert data.splits['train'].source == tmp_path / 'annotations/instances_train2017.json'
    assert data.splits['train'].image_root == tmp_path / 'train2017'
    assert data.has_masks


def test_layout_of_roboflow(tmp_path):
    for split in ('train', 'valid', 'test'):
        content = coco(2)
        for image in content['images']:
            write_image(tmp_path / split / image['file_name'])
        (tmp_path / split / '_annotations.coco.json').write_text(json.dumps(content))
    data = read_detection(tmp_path)
    assert {name: split.image_root.name for name, split in data.splits.items()} == {
        'train': 'train',
        'val': 'valid',
        'test': 'test',
    }


def test_one_file_is_split_by_image_and_always_alike(tmp_path):
    root = write_coco(tmp_path, {'default': coco(10)}, images='images')
    first, second = read_detection(root), read_detection(root)
    names = [image['file_name'] for image in first.splits['val'].images]
    assert names == [image['file_name'] for image in second.splits['val'].images]
    assert len(names) == 2 and len(first.splits['train'].images) == 8
    assert any('seeded, by image' in note for note in first.notes)
    ids = {one['image_id'] for one in first.splits['val'].annotations}
    assert ids == {image['id'] for image in first.splits['val'].images}
    assert len(read_detection(root, val_share=0.5).splits['val'].images) == 5


def test_paths_of_another_machine_are_found_by_name(tmp_path):
    content = coco(2)
    for image in content['images']:
        write_image(tmp_path / 'deep/below' / image['file_name'])
        image['file_name'] = f'C:\\Users\\me\\{image["file_name"]}'
    (tmp_path / 'train.json').write_text(json.dumps(content))
    data = read_detection(tmp_path)
    assert {image['file_name'] for split in data.splits.values() for image in split.images} == {
        'deep/below/1.jpg',
        'deep/below/2.jpg',
    }


def test_gaps_and_order_of_category_ids(tmp_path):
    gaps = [(7, 'b'), (90, 'a')]
    val = coco(2, first=10, categories=[(90, 'a'), (7, 'b')])
    data = read_detection(write_coco(tmp_path, {'train': coco(4, categories=gaps), 'val': val}))
    assert data.classes == ['b', 'a']
    assert [one['category_id'] for one in data.splits['val'].annotations] == [2, 1]
    # Stock numbers each file by its own order, which would exchange the labels of validation.
    assert data.splits['train'].source and not data.splits['val'].source
    assert any('category ids 7, 90: labels 0 to 1' in note for note in data.notes)


def test_classes_of_one_split_alone_are_told(tmp_path):
    val = coco(2, first=10, categories=[(1, NAMES[0]), (5, 'pear')])
    data = read_detection(write_coco(tmp_path, {'train': coco(4), 'val': val}))
    assert data.classes == [*NAMES, 'pear']
    assert any('1 class that training does not know: pear (val)' in note for note in data.notes)
    assert data.splits['train'].source is None  # it does not list all classes


def test_unused_categories_are_kept_and_told(tmp_path):
    content = coco(4)
    content['categories'].append(dict(id=9, name='pear'))
    data = read_detection(write_coco(tmp_path, {'train': content, 'val': dict(content, **coco(2))}))
    assert 'pear' in data.classes
    assert any('1 class of 3 without an object: pear; kept' in note for note in data.notes)


def test_two_ids_of_one_name_are_one_class(tmp_path):
    content = coco(4, categories=[(1, 'a'), (2, 'a'), (3, 'b')])
    data = read_detection(write_coco(tmp_path, {'train': content, 'val': coco(2, categories=[(1, 'a'), (2, 'b')])}))
    assert data.classes == ['a', 'b']
    assert any('several ids of the name a' in note for note in data.notes)


def test_captions_keypoints_and_images_to_be_labelled_are_left_out(tmp_path):
    root = coco_folder(tmp_path)
    caption = dict(id=1, image_id=1, caption='a square')
    others = {
        'captions_train2017': dict(coco(2), annotations=[caption]),
        'person_keypoints_train2017': coco(2),
        'image_info_test2017': dict(coco(2), annotations=[]),
    }
    for name, content in others.items():
        (root / f'annotations/{name}.json').write_text(json.dumps(content))
    (root / 'annotations/broken.json').write_text('{')
    data = read_detection(root)
    assert set(data.splits) == {'train', 'val'}
    told = '\n'.join(data.notes)
    for name in (*others, 'broken'):
        assert name in told


def test_byte_order_mark(tmp_path):
    root = coco_folder(tmp_path)
    path = root / 'annotations/instances_train2017.json'
    path.write_text(path.read_text(encoding='utf-8'), encoding='utf-8-sig')
    data = read_detection(root)
    assert data.classes == list(NAMES)
    assert data.splits['train'].source is None  # pycocotools could not read it


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda root: (root / 'annotations/instances_train2.json').write_text(json.dumps(coco(1))),
            '2 files for train',
        ),
        (lambda root: [path.unlink() for path in root.rglob('*.jpg')], 'are nowhere below'),
    ],
)
def test_refused(tmp_path, change, words):
    change(coco_folder(tmp_path))
    with pytest.raises(UserError, match=words):
        read_detection(tmp_path)


def test_records_without_what_they_need(tmp_path):
    for number, (key, change, words) in enumerate(
        [
            ('categories', lambda c: c['categories'][0].pop('name'), 'lacks an id or a name'),
            ('categories', lambda c: c['categories'].append(dict(id=1, name='other')), 'has two names'),
            ('images', lambda c: c['images'][0].pop('file_name'), 'without id or file_name'),
            ('images', lambda c: c['images'].append(dict(c['images'][0])), 'given to more than one image'),
        ]
    ):
        content = coco(2)
        root = write_coco(tmp_path / str(number), {'train': content, 'val': coco(2, first=10)})
        change(content)
        (root / 'annotations/instances_train.json').write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            read_detection(root)
        assert key


def test_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match='is no folder'):
        read_detection(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='is empty'):
        read_detection(tmp_path / 'empty')
    write_image(tmp_path / 'images/a.jpg')
    with pytest.raises(UserError, match=r'no annotations of objects .* 1 \.jpg'):
        read_detection(tmp_path)


def test_classes_of_a_trained_model(tmp_path):
    root = coco_folder(tmp_path)
    data = read_detection(root, classes=['pear', NAMES[1], NAMES[0]])
    assert [one['category_id'] for one in data.splits['val'].annotations] == [3, 2]
    data = read_detection(root, classes=['pear', NAMES[1]])
    assert [one['category_id'] for one in data.splits['val'].annotations] == [2]
    assert any('val: 1 object of classes that the model does not know' in note for note in data.notes)
    with pytest.raises(UserError, match='none of those that the checkpoint knows'):
        read_detection(root, classes=['pear', 'plum'])
