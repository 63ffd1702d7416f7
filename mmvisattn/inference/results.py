"""Results as files: COCO's JSON of objects, PNGs of labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .slicing import Prediction, Tile


class CocoResults:
    """Objects of many pictures as one file in COCO's format, with a ``score`` for each; pycocotools reads it.

    Args:
        classes (Sequence[str]): Names of the classes; category ids begin at 1.
        score_thr (float): Score of the objects that are written, 0 to 1.
    """

    def __init__(self, classes: Sequence[str], score_thr: float) -> None:
        self.score_thr = score_thr
        self.categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, name: str, size: tuple[int, int], prediction: Prediction) -> None:
        """Add what was found in a picture.

        Args:
            name (str): Its file.
            size (tuple[int, int]): Width and height in pixels.
            prediction (Prediction): What was found.
        """
        width, height = size
        self.images.append(dict(id=len(self.images) + 1, file_name=name, width=width, height=height))
        found: Any = prediction.sample
        found = found.pred_instances
        for i, (box, score, label) in enumerate(
            zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist())
        ):
            if score < self.score_thr:
                continue
            x1, y1, x2, y2 = box
            one = dict(
                id=len(self.annotations) + 1,
                image_id=len(self.images),
                category_id=label + 1,
                bbox=[round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                area=round((x2 - x1) * (y2 - y1), 2),
                iscrowd=0,
                score=round(score, 4),
            )
            if prediction.masks:
                tile, mask = prediction.masks[i]
            elif 'masks' in found:
                tile, mask = Tile(0, 0, width, height), np.asarray(found.masks[i].cpu())
            if prediction.masks or 'masks' in found:
                one.update(segmentation=encode(tile, mask, size), area=int(mask.sum()))
            self.annotations.append(one)

    def save(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dict(images=self.images, annotations=self.annotations, categories=self.categories)
        path.write_text(json.dumps(content), encoding='utf-8')


def encode(tile: Tile, mask: np.ndarray, size: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a mask that lies in a part of a picture, without the rest of the picture.

    Args:
        tile (Tile): The part.
        mask (np.ndarray): The mask there, (h, w).
        size (tuple[int, int]): Width and height of the picture in pixels.

    Returns:
        dict: ``size`` and ``counts``.
    """
    from pycocotools import mask as coco_mask

    width, height = size
    columns = np.zeros((tile.right - tile.left, height), np.int8)  # the runs go down the columns
    columns[:, tile.top : tile.bottom] = np.asarray(mask).T
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + tile.left * height
    runs = np.diff(np.concatenate([[0], edges, [width * height]]))
    rle = coco_mask.frPyObjects(dict(size=[height, width], counts=runs.tolist()), height, width)
    return dict(size=rle['size'], counts=rle['counts'].decode())


def save_labels(path: Path, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write numbers of classes as a PNG with their colours.

    Args:
        path (Path): The file.
        labels (np.ndarray): Number of the class of each pixel, (H, W).
        palette (Sequence[Sequence[int]]): Colours of the classes, RGB.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    colours = [int(value) for colour in palette for value in colour]
    # All 256 of them: with fewer pillow stores fewer bits, and larger numbers become others.
    image.putpalette(colours + [0] * (768 - len(colours)))
    image.save(path)
