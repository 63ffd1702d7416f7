import contextlib
import io

from mmvisattn.inference import CocoResults, Prediction, save_labels
from mmvisattn.inference.results import encode
from mmvisattn.inference.slicing import Tile

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image
from pycocotools.coco import COCO


def found(**more) -> BaseDataElement:
    boxes = torch.tensor([[2.0, 3.0, 12.0, 9.0], [0.0, 0.0, 4.0, 4.0]])
    instances = InstanceData(bboxes=boxes, scores=torch.tensor([0.8, 0.1]), labels=torch.tensor([1, 0]), **more)
    return BaseDataElement(pred_instances=instances)


def read(results: CocoResults, path) -> COCO:
    results.save(path)
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_coco_reads_the_results(tmp_path):
    mask = torch.zeros(2, 20, 30, dtype=torch.bool)
    mask[0, 3:9, 2:12] = True
    results = CocoResults(['apple', 'Äpfel'], 0.3)
    results.add('a.jpg', (30, 20), Prediction(found(masks=mask)))
    results.add('b.jpg', (30, 20), Prediction(found()))
    coco = read(results, tmp_path / 'new/results.json')
    assert [image['file_name'] for image in coco.dataset['images']] == ['a.jpg', 'b.jpg']
    first, second = coco.dataset['annotations']
    assert first['bbox'] == [2, 3, 10, 6] and first['score'] == 0.8
    assert coco.cats[first['category_id']]['name'] == 'Äpfel'
    assert np.array_equal(coco.annToMask(first), mask[0].numpy())
    assert 'segmentation' not in second and second['image_id'] == 2


def test_masks_of_tiles(tmp_path):
    part = np.ones((6, 10), bool)
    tile = Tile(2, 3, 12, 9)
    results = CocoResults(['apple', 'pear'], 0.3)
    results.add('a.jpg', (30, 20), Prediction(found(), [(tile, part)] * 2))
    coco = read(results, tmp_path / 'results.json')
    ys, xs = np.nonzero(coco.annToMask(coco.dataset['annotations'][0]))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (2, 3, 11, 8)


def test_labels_keep_their_numbers_and_have_colours(tmp_path):
    labels = np.arange(12).reshape(3, 4) % 3
    palette = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    save_labels(tmp_path / 'new/a.png', labels, palette)
    with Image.open(tmp_path / 'new/a.png') as image:
        assert np.array_equal(np.asarray(image), labels)
        assert np.asarray(image.convert('RGB'))[0, 1].tolist() == [4, 5, 6]


def test_run_lengths_of_a_part_are_those_of_the_whole():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for tile in (Tile(0, 0, 30, 20), Tile(3, 4, 9, 17), Tile(25, 0, 30, 20), Tile(5, 5, 5, 5)):
        full = np.zeros((20, 30), np.uint8)
        part = full[tile.top : tile.bottom, tile.left : tile.right]
        part[:] = rng.random(part.shape) < 0.5
        assert np.array_equal(coco_mask.decode(encode(tile, part, (30, 20))), full)
