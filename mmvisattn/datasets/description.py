"""What was found in a folder, the same for every format."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Split:
    """Images of one split with their annotations, as COCO writes them.

    Args:
        image_root (Path): Folder that ``file_name`` of each image is relative to.
        images (list[dict]): COCO's records of images: ``id``, ``file_name``, ``width``, ``height``.
        annotations (list[dict]): COCO's records of objects; ``category_id`` is 1 for the first class.
        source (Path, optional): A file of the user's that says just this, and can be read in its place.
    """

    image_root: Path
    images: list[dict]
    annotations: list[dict]
    source: Path | None = None


@dataclass
class DetectionData:
    """Objects with boxes, and perhaps with outlines.

    Args:
        root (Path): The user's folder.
        format (str): ``COCO``, ``Pascal VOC`` or ``YOLO``.
        classes (list[str]): Names of the classes, in the order of the labels.
        splits (dict[str, Split]): By ``train``, ``val`` and ``test``.
        notes (list[str]): What the user is to know, a line each.
        has_masks (bool): Whether any object has an outline.
        ignore_orientation (bool): Whether the annotations are of the images without the rotation that EXIF names.
    """

    root: Path
    format: str
    classes: list[str]
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    has_masks: bool = False
    ignore_orientation: bool = False


@dataclass
class SegmentationData:
    """Images with a label for each pixel.

    Args:
        root (Path): The user's folder.
        format (str): Kind of the labels: ``index``, ``palette``, ``binary`` or ``colour``.
        classes (list[str]): Names of the classes, in the order of the labels.
        palette (list[tuple[int, int, int]]): Their colours, RGB.
        pairs (dict[str, list[tuple[Path, Path]]]): Image and label files by ``train``, ``val`` and ``test``.
        mapping (dict[int | tuple[int, int, int], int]): What each value or colour of the files becomes: the number of
            a class, or 255 for void.
        histogram (dict[int | tuple[int, int, int], int]): Pixels of each value or colour in all files.
        class_images (dict[int | tuple[int, int, int], int]): Images that each value or colour is in.
        sizes (list[tuple[int, int]]): Width and height of the images of the first split.
        reduce_zero_label (bool): Whether the files are stock as they are but for 0, which is void.
        convert (bool): Whether the files are to be written anew by ``mapping``; else they are read as they are.
        notes (list[str]): What the user is to know, a line each.
        ignore_orientation (bool): Whether the labels are of the images without the rotation that EXIF names.
    """

    root: Path
    format: str
    classes: list[str]
    palette: list[tuple[int, int, int]]
    pairs: dict[str, list[tuple[Path, Path]]]
    mapping: dict
    histogram: dict
    class_images: dict
    sizes: list[tuple[int, int]]
    reduce_zero_label: bool = False
    convert: bool = False
    notes: list[str] = field(default_factory=list)
    ignore_orientation: bool = False

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class that the network will see, (classes,)."""
        counts = np.zeros(len(self.classes), np.int64)
        for value, number in self.histogram.items():
            if (label := self.mapping[value]) < len(counts):
                counts[label] += number
        return counts


def distinct_palette(count: int) -> list[tuple[int, int, int]]:
    """So many colours that differ in hue, then in brightness; the same ones every time."""
    import colorsys

    hues = [(0.03 + i * 0.618034) % 1 for i in range(count)]
    colours = [
        colorsys.hsv_to_rgb(hue, (0.85, 0.55, 1.0)[i % 3], (0.95, 0.85, 0.65)[i // 3 % 3]) for i, hue in enumerate(hues)
    ]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]
