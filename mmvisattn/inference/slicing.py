"""Large pictures by overlapping tiles: what is found in each, put together at the size of the whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

IOU_THRESHOLD = 0.5  # of boxes of one class from different tiles, above which they are one object
COVERED = 0.7  # share of a box cut off by a tile's edge that another covers, above which it is a part of that


class Tile(NamedTuple):
    """A part of a picture, in pixels.

    Args:
        left (int): First column.
        top (int): First row.
        right (int): Column after the last.
        bottom (int): Row after the last.
    """

    left: int
    top: int
    right: int
    bottom: int


@dataclass
class Prediction:
    """What a model says about a picture.

    Args:
        sample (BaseDataElement): The toolbox's data sample.
        masks (list[tuple[Tile, np.ndarray]]): Of a detector by tiles, the part of the picture that holds each of
            ``sample.pred_instances``, and its mask there: masks of the whole picture would fill the memory.
    """

    sample: BaseDataElement
    masks: list[tuple[Tile, np.ndarray]] = field(default_factory=list)


def tiles(width: int, height: int, side: int, overlap: float) -> Iterator[Tile]:
    """Tiles that cover a picture; the last of a row or column is moved inwards, not cut.

    Args:
        width (int): Width of the picture in pixels.
        height (int): Height of the picture in pixels.
        side (int): Side of a tile in pixels.
        overlap (float): Share of it that neighbours have in common, 0 to less than 1.
    """
    step = max(round(side * (1 - overlap)), 1)

    def starts(length: int) -> list[int]:
        last = max(length - side, 0)
        return [*range(0, last, step), last]

    for top in starts(height):
        for left in starts(width):
            yield Tile(left, top, min(left + side, width), min(top + side, height))


def predict_sliced(
    predict: Callable[[np.ndarray], Any], picture: np.ndarray, side: int, overlap: float, score_thr: float
) -> Prediction:
    """The prediction of a picture by tiles, and from the whole, made small, of the objects that are larger than a tile.

    Args:
        predict (Callable[[np.ndarray], Any]): Gives the data sample of a picture (H, W, 3).
        picture (np.ndarray): The picture, (H, W, 3), 8 bits.
        side (int): Side of a tile in pixels.
        overlap (float): Share of it that neighbours have in common, 0 to less than 1.
        score_thr (float): Score of the objects that are kept, 0 to 1.

    Returns:
        Prediction: Of the whole picture.
    """
    height, width = picture.shape[:2]
    parts = list(tiles(width, height, side, overlap))
    if len(parts) == 1:
        return Prediction(predict(picture))
    first = predict(picture[parts[0].top : parts[0].bottom, parts[0].left : parts[0].right])
    samples = (
        first if part is parts[0] else predict(picture[part.top : part.bottom, part.left : part.right])
        for part in parts
    )
    if 'pred_sem_seg' in first:
        return Prediction(_merge_labels(zip(parts, samples), first, width, height))
    whole = Tile(0, 0, width, height)
    pairs = [(whole, predict(picture)), *zip(parts, samples)]
    return _merge_objects(pairs, width, height, score_thr, side)


def _merge_labels(pairs: Any, first: Any, width: int, height: int) -> Any:
    """Of two tiles each has the half of their common part that is further from its own edge."""
    labels = torch.zeros(1, height, width, dtype=first.pred_sem_seg.data.dtype)
    edges_x: dict[int, int] = {}
    edges_y: dict[int, int] = {}
    for tile, sample in pairs:
        # The tiles come row by row: what is in common with an earlier one is halved with it.
        left = (tile.left + edges_x.get(tile.top, 0)) // 2 if tile.left else 0
        top = (tile.top + edges_y.get(tile.left, 0)) // 2 if tile.top else 0
        data = sample.pred_sem_seg.data.cpu()
        labels[:, top : tile.bottom, left : tile.right] = data[:, top - tile.top :, left - tile.left :]
        edges_x[tile.top], edges_y[tile.left] = tile.right, tile.bottom
    merged = type(first)(pred_sem_seg=PixelData(data=labels))
    merged.set_metainfo(dict(ori_shape=(height, width), img_shape=(height, width)))
    return merged


def _merge_objects(pairs: list[tuple[Tile, Any]], width: int, height: int, score_thr: float, side: int) -> Prediction:
    from mmcv.ops import batched_nms

    boxes, scores, labels, cut, masks = [], [], [], [], []
    for tile, sample in pairs:
        found = sample.pred_instances.cpu()
        found = found[found.scores >= score_thr]
        if tile.right - tile.left > side or tile.bottom - tile.top > side:
            found = found[(found.bboxes[:, 2:] - found.bboxes[:, :2]).amax(1) > side]
        own = found.bboxes
        edges = own.new_tensor([tile.left > 0, tile.top > 0, tile.right < width, tile.bottom < height]).bool()
        distance = (own - own.new_tensor([0, 0, tile.right - tile.left, tile.bottom - tile.top])).abs()
        cut.append(((distance < 2) & edges).any(1))
        boxes.append(own + own.new_tensor([tile.left, tile.top] * 2))
        scores.append(found.scores)
        labels.append(found.labels)
        masks += [_cut_out(tile, np.asarray(mask)) for mask in found.get('masks', ())]
    all_boxes, all_scores, all_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = torch.arange(0)
    if len(all_boxes):
        _, keep = batched_nms(all_boxes, all_scores, all_labels, dict(type='nms', iou_threshold=IOU_THRESHOLD))
    keep = keep[~_parts(all_boxes[keep], all_labels[keep], torch.cat(cut)[keep])]
    sample = type(pairs[0][1])()
    sample.set_metainfo(dict(ori_shape=(height, width), img_shape=(height, width)))
    sample.pred_instances = InstanceData(bboxes=all_boxes[keep], scores=all_scores[keep], labels=all_labels[keep])
    return Prediction(sample, [masks[i] for i in keep.tolist()] if masks else [])


def _cut_out(tile: Tile, mask: np.ndarray) -> tuple[Tile, np.ndarray]:
    """The part of a tile that a mask fills, and the mask there."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Tile(tile.left, tile.top, tile.left, tile.top), mask[:0, :0]
    top, bottom, left, right = (int(i) for i in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    part = Tile(tile.left + left, tile.top + top, tile.left + right, tile.top + bottom)
    return part, mask[top:bottom, left:right].copy()


def _parts(boxes: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Which boxes that a tile's edge has cut off are parts of another of their class, (N,)."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    covered = common > COVERED * area[:, None]
    covered &= (labels[:, None] == labels) & (area[:, None] < area)
    return cut & covered.any(1)
