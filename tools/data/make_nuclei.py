"""Write a small real set in every format that ``--data`` reads: a micrograph of cell nuclei with its labels.

The picture and its labels come with the package ``stardist`` (BSD licence); nothing of it is installed or run::

    pip download --no-deps stardist==0.9.1 -d downloads
    python tools/data/make_nuclei.py downloads/stardist-0.9.1*.whl data/nuclei

They are cut into tiles of 128×128 pixels, with the values from the 1st to the 99.8th percentile stretched to 8 bits::

    OUT/coco/images/*.png, annotations.json           outlines as run lengths, no split
    OUT/voc/{JPEGImages,Annotations,ImageSets/Main}   boxes
    OUT/yolo/{images,labels}/{train,val}, data.yaml   boxes
    OUT/masks/{images,masks}                          0 and 255
    OUT/nuclei.png                                    the whole picture, stretched
    OUT/nuclei.tif                                    as it came, of 16 bits
"""

import argparse
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError

import numpy as np
from PIL import Image

SIDE = 128
LEAST = 20  # pixels of a nucleus, below which what a cut has left of it is not annotated
VAL = 4  # every fourth tile is for validation in the formats that have splits
NAME = 'nucleus'


def read_wheel(path: str) -> tuple[np.ndarray, np.ndarray, bytes]:
    """The picture (H, W), stretched to 8 bits, the number of the nucleus in each pixel, and the file of the picture.

    Raises:
        UserError: If the file is not the wheel.
    """
    cli.check_file(path, 'wheel')
    try:
        with zipfile.ZipFile(path) as wheel:
            files = [wheel.read(f'stardist/data/images/{name}.tif') for name in ('img2d', 'mask2d')]
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f'{path} is no wheel of stardist with its pictures; the first lines of --help get it'
        ) from error
    picture, labels = (np.asarray(Image.open(io.BytesIO(file))) for file in files)
    low, high = np.percentile(picture, (1, 99.8))
    stretched = ((picture - low) / (high - low)).clip(0, 1) * 255
    return stretched.astype(np.uint8), labels, files[0]


def boxes_of(labels: np.ndarray) -> list[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Mask (H, W) and box (left, top, right, bottom) of each nucleus in a tile."""
    found = []
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        if mask.sum() >= LEAST:
            ys, xs = np.nonzero(mask)
            found.append((mask, (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)))
    return found


def write_coco(root: Path, tiles: dict[str, tuple]) -> None:
    """One JSON without splits."""
    from pycocotools import mask as coco_mask

    images, annotations = [], []
    for name, (_, objects) in tiles.items():
        images.append(dict(id=len(images) + 1, file_name=f'{name}.png', width=SIDE, height=SIDE))
        for mask, (left, top, right, bottom) in objects:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=len(images),
                    category_id=1,
                    bbox=[left, top, right - left, bottom - top],
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
                )
            )
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name=NAME)])
    (root / 'annotations.json').write_text(json.dumps(content))


def write_voc(root: Path, tiles: dict[str, tuple]) -> None:
    """An XML file a tile, and lists of the splits."""
    for folder in ('Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for name, (_, objects) in tiles.items():
        lines = [f'<annotation><filename>{name}.png</filename>']
        lines.append(f'<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>')
        for _, (left, top, right, bottom) in objects:
            corners = f'<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right + 1}</xmax><ymax>{bottom + 1}</ymax>'
            lines.append(f'<object><name>{NAME}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>')
        (root / f'Annotations/{name}.xml').write_text('\n'.join([*lines, '</annotation>\n']))
    for split in ('train', 'val'):
        names = [name for i, name in enumerate(tiles) if split_of(i) == split]
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')


def write_yolo(root: Path, tiles: dict[str, tuple]) -> None:
    """A text file a tile."""
    for i, (name, (_, objects)) in enumerate(tiles.items()):
        path = root / f'labels/{split_of(i)}/{name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for _, (left, top, right, bottom) in objects:
            shares = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
            lines.append('0 ' + ' '.join(f'{value / SIDE:.6f}' for value in shares) + '\n')
        path.write_text(''.join(lines))
    (root / 'data.yaml').write_text(f'train: images/train\nval: images/val\nnames:\n  0: {NAME}\n')


def split_of(index: int) -> str:
    """The split of a tile."""
    return 'val' if index % VAL == VAL - 1 else 'train'


def write_set(wheel: str, out: Path) -> int:
    """Write all formats.

    Args:
        wheel (str): The package's file.
        out (Path): Folder to write to; it must be empty or not there yet.

    Returns:
        int: The number of tiles.

    Raises:
        UserError: If the folder holds something, or the wheel is none.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} holds something; give a folder that is empty or not there yet')
    picture, labels, original = read_wheel(wheel)
    tiles = {}
    for top in range(0, picture.shape[0], SIDE):
        for left in range(0, picture.shape[1], SIDE):
            part = np.s_[top : top + SIDE, left : left + SIDE]
            tiles[f'{top:03}-{left:03}'] = (picture[part], boxes_of(labels[part]))
            mask = Image.fromarray(((labels[part] > 0) * 255).astype(np.uint8))
            (out / 'masks/masks').mkdir(parents=True, exist_ok=True)
            mask.save(out / f'masks/masks/{top:03}-{left:03}.png')
    for i, (name, (tile, _)) in enumerate(tiles.items()):
        for folder in ('coco/images', 'voc/JPEGImages', f'yolo/images/{split_of(i)}', 'masks/images'):
            (out / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile).save(out / folder / f'{name}.png')
    write_coco(out / 'coco', tiles)
    write_voc(out / 'voc', tiles)
    write_yolo(out / 'yolo', tiles)
    Image.fromarray(picture).save(out / 'nuclei.png')
    (out / 'nuclei.tif').write_bytes(original)
    return len(tiles)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Write the set of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('wheel', help='the file that pip downloads')
    parser.add_argument('out', type=Path, help='folder of the set')
    args = parser.parse_args(argv)
    print(f'{args.out}: {write_set(args.wheel, args.out)} tiles in the formats of COCO, VOC and YOLO, and as masks')


if __name__ == '__main__':
    main()
