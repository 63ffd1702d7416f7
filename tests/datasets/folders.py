"""Small folders of data as users have them, in each format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
NAMES = ('apple', 'Äpfel')
SQUARE = [8, 6, 20, 16]  # x, y, width, height


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1) -> None:
    """An image of grey levels; its EXIF may say that it is to be turned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(40, 200, size[0]).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.tile(ramp, (size[1], 1))[..., None], 3, 2))
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def outline(box: Sequence[float]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def coco(
    count: int = 4, first: int = 1, categories: Sequence[tuple[int, str]] = ((1, NAMES[0]), (2, NAMES[1]))
) -> dict:
    """COCO's content with one object an image, of the classes in turn."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT) for i in range(first, first + count)]
    annotations = [
        dict(
            id=image['id'],
            image_id=image['id'],
            category_id=categories[i % len(categories)][0],
            bbox=SQUARE,
            area=SQUARE[2] * SQUARE[3],
            iscrowd=0,
            segmentation=outline(SQUARE),
        )
        for i, image in enumerate(images)
    ]
    listed = [dict(id=number, name=name) for number, name in categories]
    return dict(images=images, annotations=annotations, categories=listed)


def write_coco(root: Path, splits: Mapping[str, dict], images: str = '{split}') -> Path:
    """COCO's layout: ``annotations/instances_SPLIT.json`` and a folder of images a split."""
    for split, content in splits.items():
        for image in content['images']:
            write_image(root / images.format(split=split) / image['file_name'])
        path = root / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
    return root


def coco_folder(root: Path) -> Path:
    return write_coco(root, {'train2017': coco(4), 'val2017': coco(2, first=10)})


def one(root: Path, **changes: object) -> Path:
    """COCO's layout, and the first object of training has other values, or lacks those that are ``...``."""
    content = coco(4)
    for key, value in changes.items():
        if value is ...:
            del content['annotations'][0][key]
        else:
            content['annotations'][0][key] = value
    return write_coco(root, {'train2017': content, 'val2017': coco(2, first=10)})


def voc_xml(name: str, objects: Sequence[tuple], size: tuple[int, int] | None = (WIDTH, HEIGHT)) -> str:
    """VOC's annotation of objects of (class, xmin, ymin, xmax, ymax, difficult)."""
    parts = [f'<filename>{name}</filename>']
    if size:
        parts.append(f'<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>')
    for kind, x1, y1, x2, y2, difficult in objects:
        parts.append(
            f'<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>'
            f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
        )
    return f'<annotation>{"".join(parts)}</annotation>'


def voc_folder(root: Path, count: int = 4, lists: bool = True) -> Path:
    (root / 'Annotations').mkdir(parents=True)
    for i in range(count):
        write_image(root / f'JPEGImages/{i}.jpg')
        objects = [(NAMES[i % 2], 9, 7, 29, 23, 0), (NAMES[0], 30, 20, 60, 40, i % 2)]
        (root / f'Annotations/{i}.xml').write_text(voc_xml(f'{i}.jpg', objects), encoding='utf-8')
    if lists:
        main = root / 'ImageSets/Main'
        main.mkdir(parents=True)
        (main / 'train.txt').write_text(''.join(f'{i}\n' for i in range(count - 1)))
        (main / 'val.txt').write_text(f'{count - 1}\n')
        (main / 'apple_train.txt').write_text('0 1\n1 -1\n')
    return root


def yolo_folder(root: Path, line: str = '1 0.5 0.5 0.25 0.5', count: int = 3, settings: bool = True) -> Path:
    for split in ('train', 'val'):
        for i in range(count):
            write_image(root / f'images/{split}/{split}{i}.jpg')
            label = root / f'labels/{split}/{split}{i}.txt'
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f'{line}\n')
    if settings:
        names = '\n'.join(f'  {i}: {name}' for i, name in enumerate(NAMES))
        text = f'train: images/train\nval: images/val\nnames:\n{names}\n'
        (root / 'data.yaml').write_text(text, encoding='utf-8')
    return root


def labels_folder(
    root: Path,
    values: Sequence[int] = (0, 1, 2),
    names: Sequence[str] = (),
    count: int = 4,
    palette: Sequence[int] | None = None,
) -> Path:
    """Images and labels of vertical stripes of the values in parallel folders, without splits."""
    for i in range(count):
        write_image(root / f'images/{i}.jpg')
        write_label(root / f'labels/{i}.png', values, palette)
    if names:
        (root / 'classes.txt').write_text('\n'.join(names) + '\n', encoding='utf-8')
    return root


def write_label(path: Path, values: Sequence[int | tuple], palette: Sequence[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.repeat(np.array(values), -(-WIDTH // len(values)), 0)[:WIDTH]
    dtype = np.uint16 if np.max(stripes) > 255 else np.uint8
    label = np.broadcast_to(stripes, (HEIGHT, *stripes.shape)).astype(dtype)
    if label.dtype == np.uint16:
        cv2.imwrite(str(path), label)
        return
    image = Image.fromarray(np.ascontiguousarray(label))
    if palette is not None:
        image.putpalette(list(palette) + [0] * (768 - len(palette)))
    image.save(path)


def contents(root: Path) -> dict[str, int]:
    """All files of a folder with their sizes: it must be as it was."""
    return {str(path.relative_to(root)): path.stat().st_size for path in sorted(root.rglob('*')) if path.is_file()}
