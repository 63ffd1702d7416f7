"""What the data hold, as tables: objects by class and size, pixels by value and class, weights of the classes."""

from collections.abc import Sequence

import numpy as np

from .description import DetectionData, SegmentationData
from .label_values import VOID

SMALL, LARGE = 32**2, 96**2  # COCO's bounds of area, in pixels


def detection_table(data: DetectionData) -> str:
    """Objects of each class by split and COCO's sizes, images that they are in, and weights of the classes."""
    names = list(data.splits)
    rows = [['class', *names, 'small', 'medium', 'large', 'images', 'weight']]
    counts = np.zeros((len(data.classes), len(names) + 4), np.int64)
    images: list[set] = [set() for _ in data.classes]
    for i, (name, split) in enumerate(data.splits.items()):
        for one in split.annotations:
            if one['iscrowd']:
                continue
            label = one['category_id'] - 1
            size = (one['area'] >= SMALL) + (one['area'] >= LARGE)
            counts[label, i] += 1
            counts[label, len(names) + size] += 1
            images[label].add((name, one['image_id']))
    first = names.index('train') if 'train' in names else 0
    weights = class_weights(counts[:, first])
    for label, name in enumerate(data.classes):
        if not counts[label].any():  # told by name elsewhere
            continue
        numbers = [*counts[label, : len(names) + 3], len(images[label])]
        rows.append([name, *map(str, numbers), f'{weights[label]:.2f}'])
    return as_table(rows)


def segmentation_table(data: SegmentationData) -> str:
    """Pixels of each value as read and as the network will see it, images that it is in, and weights of the classes."""
    total = sum(data.histogram.values())
    rows = [['in the files', 'pixels', 'images', 'for the network', 'class', 'weight']]
    weights = class_weights(data.pixels)
    for value in sorted(data.histogram):
        label = data.mapping[value]
        share = data.histogram[value] / total
        seen = ['255', 'void', ''] if label == VOID else [str(label), data.classes[label], f'{weights[label]:.2f}']
        text = ' '.join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append([text, f'{share:.2%}', str(data.class_images[value]), *seen])
    return as_table(rows)


def class_weights(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Weights by the median of the counts over each, 0.1 to 10; 1 for a class that is not there."""
    counts = np.asarray(counts, float)
    there = counts > 0
    weights = np.ones(len(counts))
    if there.any():
        weights[there] = (np.median(counts[there]) / counts[there]).clip(0.1, 10)
    return weights


def as_table(rows: list[list[str]]) -> str:
    """Rows of cells in columns, the first one to the left; the first row is the heads."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return '\n'.join(line.rstrip() for line in lines)
