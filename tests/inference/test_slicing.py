from types import SimpleNamespace

from mmvisattn.inference import predict_sliced
from mmvisattn.inference.slicing import tiles

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData


@pytest.mark.parametrize(
    ('width', 'height', 'side', 'overlap'), [(100, 60, 40, 0.2), (30, 30, 40, 0), (81, 40, 40, 0.5)]
)
def test_tiles_cover_the_picture(width, height, side, overlap):
    seen = np.zeros((height, width), int)
    for tile in tiles(width, height, side, overlap):
        part = seen[tile.top : tile.bottom, tile.left : tile.right]
        assert part.shape == (min(side, height), min(side, width))
        part += 1
    assert seen.min() == 1


def objects(picture: np.ndarray, masks: bool = False) -> BaseDataElement:
    """Finds the white rectangles that lie in the picture, by connected parts."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(picture[..., 0])
    boxes = torch.tensor(stats[1:, :4], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = InstanceData(
        bboxes=boxes, scores=torch.full((count - 1,), 0.9), labels=torch.zeros(count - 1, dtype=torch.long)
    )
    if masks:
        found.masks = (
            torch.tensor(np.stack([labels == i for i in range(1, count)])) if count > 1 else torch.zeros(0, 1, 1)
        )
    return BaseDataElement(pred_instances=found)


RECTANGLES = [(5, 5, 15, 15), (30, 30, 50, 44), (80, 10, 90, 50), (2, 52, 98, 58)]  # the last one is in no tile


def scene() -> np.ndarray:
    picture = np.zeros((60, 100, 3), np.uint8)
    for left, top, right, bottom in RECTANGLES:
        picture[top:bottom, left:right] = 255
    return picture


def test_objects_are_found_once_and_whole():
    prediction = predict_sliced(objects, scene(), 60, 0.5, 0.3)
    found = sorted(tuple(map(int, box)) for box in prediction.sample.pred_instances.bboxes.tolist())
    assert found == sorted(RECTANGLES)
    assert prediction.sample.ori_shape == (60, 100)


def test_masks_are_cut_out():
    prediction = predict_sliced(lambda part: objects(part, masks=True), scene(), 60, 0.5, 0.3)
    assert len(prediction.masks) == len(RECTANGLES)
    for box, (tile, mask) in zip(prediction.sample.pred_instances.bboxes.tolist(), prediction.masks):
        assert mask.all()
        full = np.zeros((60, 100), bool)
        full[tile.top : tile.bottom, tile.left : tile.right] = mask
        ys, xs = np.nonzero(full)
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box


def test_nothing_found_and_low_scores():
    prediction = predict_sliced(objects, np.zeros((60, 100, 3), np.uint8), 40, 0.25, 0.3)
    assert len(prediction.sample.pred_instances) == 0
    assert len(predict_sliced(objects, scene(), 40, 0.25, 0.95).sample.pred_instances) == 0


@pytest.mark.parametrize('overlap', [0, 0.2, 0.5])
def test_labels_are_put_together(overlap):
    picture = np.random.default_rng(0).integers(0, 9, (60, 100, 3), np.uint8)

    def labels(part: np.ndarray) -> BaseDataElement:
        data = torch.tensor(part[..., 0].astype(np.int64))[None].clone()
        if overlap:  # wrong at the edges, where the network sees least
            data[:, :2] = data[:, -2:] = 99
            data[:, :, :2] = data[:, :, -2:] = 99
        return BaseDataElement(pred_sem_seg=PixelData(data=data))

    out = predict_sliced(labels, picture, 40, overlap, 0.3).sample.pred_sem_seg.data[0].numpy()
    assert np.array_equal(out[2:-2, 2:-2], picture[2:-2, 2:-2, 0])


def test_a_small_picture_is_predicted_as_it_is():
    sample = SimpleNamespace()
    assert predict_sliced(lambda part: sample, np.zeros((30, 30, 3), np.uint8), 40, 0.2, 0.3).sample is sample
