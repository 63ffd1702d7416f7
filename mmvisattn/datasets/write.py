"""The files that stock datasets read, below the work directory; the user's folder is left as it is."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .description import DetectionData, SegmentationData
from .label_values import VOID, load_label


class LabelFolders(NamedTuple):
    """Where mmseg finds a split.

    Args:
        images (Path): Folder of images.
        labels (Path): Folder of labels of the same names.
        suffix (str): Suffix of all images.
    """

    images: Path
    labels: Path
    suffix: str


def write_coco(data: DetectionData, cache: Path) -> dict[str, Path]:
    """Write COCO's JSON of each split, but where the user's own file says the same.

    Args:
        data (DetectionData): The data.
        cache (Path): Folder to write to.

    Returns:
        dict[str, Path]: The file of each split.
    """
    categories = [dict(id=number, name=name) for number, name in enumerate(data.classes, 1)]
    files = {}
    for name, split in data.splits.items():
        if split.source:
            files[name] = split.source
            continue
        content = dict(images=split.images, annotations=split.annotations, categories=categories)
        files[name] = cache / f'{name}.json'
        write_anew(files[name], json.dumps(content))
    return files


def write_anew(path: Path, text: str) -> None:
    """Write a file at once, so that other processes of the run never read a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)


def write_labels(data: SegmentationData, cache: Path) -> dict[str, LabelFolders]:
    """Folders of images (links) and labels (links, or written anew as numbers) for each split.

    A folder is made once; that of other labels, or of another meaning of them, has another name.

    Args:
        data (SegmentationData): The data.
        cache (Path): Folder to write to.

    Returns:
        dict[str, LabelFolders]: Where each split is.
    """
    folders = {}
    by_colour = isinstance(next(iter(data.mapping)), tuple)
    for name, pairs in data.pairs.items():
        times = [(str(image), str(label), label.stat().st_mtime_ns) for image, label in pairs]
        state = [times, sorted(map(str, data.mapping.items())) if data.convert else None]
        folder = cache / f'{name}-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:10]}'
        suffixes = {image.suffix for image, _ in pairs}
        suffix = suffixes.pop() if len(suffixes) == 1 else '.png'  # what is inside counts, not the name
        folders[name] = LabelFolders(folder / 'images', folder / 'labels', suffix)
        if folder.is_dir():
            continue
        new = folder.with_name(f'.{folder.name}.{os.getpid()}')
        for part in ('images', 'labels'):
            (new / part).mkdir(parents=True)
        stems: dict[str, int] = {}
        for image, label in pairs:
            number = stems[image.stem] = stems.get(image.stem, 0) + 1
            stem = image.stem if number == 1 else f'{image.stem}-{number}'
            (new / 'images' / f'{stem}{suffix}').symlink_to(image)
            target = new / 'labels' / f'{stem}.png'
            if data.convert:
                Image.fromarray(to_numbers(load_label(label, by_colour), data)).save(target)
            else:
                target.symlink_to(label)
        try:
            new.rename(folder)
        except OSError:  # another process of the run was faster
            shutil.rmtree(new)
    return folders


def to_numbers(values: np.ndarray, data: SegmentationData) -> np.ndarray:
    """Labels as classes are numbered.

    Args:
        values (np.ndarray): What a file holds, (H, W) or (H, W, 3).
        data (SegmentationData): What the values mean.

    Returns:
        np.ndarray: (H, W), 8 bits, 255 for void.
    """
    by_colour = isinstance(next(iter(data.mapping)), tuple)
    if values.ndim == 3 and not by_colour:
        values = values[..., 0]
    if not by_colour:
        table = np.full(max(data.mapping) + 1, VOID, np.uint8)
        table[list(data.mapping)] = list(data.mapping.values())
        return table[values]
    packed = values.astype(np.int64) @ (65536, 256, 1) if values.ndim == 3 else values.astype(np.int64) * 65793
    keys = np.array([(r << 16) + (g << 8) + b for r, g, b in data.mapping])
    order = keys.argsort()
    found = np.searchsorted(keys[order], packed).clip(max=len(keys) - 1)
    numbers = np.array(list(data.mapping.values()), np.uint8)[order][found]
    return np.where(keys[order][found] == packed, numbers, VOID).astype(np.uint8)
