"""Draw small outdoor scenes and write them in the layouts of COCO and ADE20K: real input without a download.

The things and the surfaces carry the names, ids and labels that they have in the two data sets, so that stock configs
read them with nothing but ``data_root`` changed::

    OUT/mini.json                                                             the options of the set
    OUT/coco/annotations/instances_{train,val}2017.json
    OUT/coco/{train,val}2017/*.jpg
    OUT/ade/ADEChallengeData2016/images/{training,validation}/*.jpg           the same pictures
    OUT/ade/ADEChallengeData2016/annotations/{training,validation}/*.png      0 = other

The COCO files list all 80 categories: heads of 80 and 150 classes work as they are. For heads that know the drawn
classes alone, name these in the datasets. ``CocoDataset`` numbers them in COCO's order whatever the order of the names,
so keep to that one. ``palette`` may be left out, ``ADE20KDataset`` takes its colours from ADE20K's own::

    metainfo = dict(classes=('person', 'car', 'airplane', 'boat', 'bench', 'sports ball'))  # 6, mmdet
    metainfo = dict(classes=('sky', 'mountain', 'grass', 'sea', 'sand',
                             'car', 'airplane', 'boat', 'ball', 'person', 'bench'))         # 11, mmseg

``--classes K`` draws the first K of: car, airplane, boat, sports ball, person, bench, bus, traffic light. Outlines and
parts tell them apart, their colours say nothing. Surfaces differ in texture and place more than in colour.

Example:
    python tools/data/make_mini.py data/mini --train 600 --val 100 --size 160 128
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.data.mini_scenes import FINE, SIZE_BOUNDS, Instance, Options, draw_scene, to_pixels
from tools.data.mini_search import draw_search
from tools.data.mini_shapes import COCO_IDS, THINGS

VERSION = 1  # to be raised whenever the same options give other files
ADE_ROOT = 'ade/ADEChallengeData2016'
MIN_FRAGMENT = 2.0  # pixels; smaller polygons and holes are left out of an annotation


class MiniError(Exception):
    """What keeps a set from being made, in words for the user."""


# Annotations


def find_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outline a mask.

    COCO's polygons know no holes, so a piece with a hole is cut in two along the middle of the hole.

    Args:
        mask (np.ndarray): Mask (FINE * H, FINE * W) of the fine canvas, bool or uint8.

    Returns:
        list[np.ndarray]: Polygons (N, 2) in image pixels, along the edges of the mask.
    """
    mask = mask.astype(np.uint8)
    least = MIN_FRAGMENT * FINE**2
    # One more pixel to the right and below makes the pixels' centres, which OpenCV reports, the mask's edges.
    grown = np.pad(mask, ((0, 1), (0, 1)))
    grown[1:] |= grown[:-1].copy()
    grown[:, 1:] |= grown[:, :-1].copy()
    contours, tree = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for number, contour in enumerate(contours):
        is_hole = tree[0][number][3] >= 0
        if is_hole or cv2.contourArea(contour) < least:
            continue
        holes = [inner for inner, links in zip(contours, tree[0]) if links[3] == number]
        hole = max(holes, key=cv2.contourArea, default=None)
        if hole is None or cv2.contourArea(hole) < least:
            polygons.append(cv2.approxPolyDP(contour, 0.35 * FINE, True)[:, 0] / FINE)
            continue
        piece = cv2.drawContours(np.zeros_like(grown), contours, number, 1, cv2.FILLED, hierarchy=tree, maxLevel=1)
        piece = piece[:-1, :-1] & mask
        x, _, width, _ = cv2.boundingRect(hole)
        for side in (np.s_[:, : x + width // 2], np.s_[:, x + width // 2 :]):
            half = np.zeros_like(piece)
            half[side] = piece[side]
            polygons += find_polygons(half)
    return [polygon for polygon in polygons if len(polygon) >= 3]


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask (H, W) as COCO's uncompressed run lengths, column by column, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {'counts': runs[: -1 if runs[-1] == 0 else None].tolist(), 'size': list(mask.shape)}


def annotate(instance: Instance) -> dict[str, Any] | None:
    """Describe an instance as COCO does, or None if nothing of it is to be seen."""
    if instance.crowd:
        mask = to_pixels(instance.mask)
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        bbox, area, segmentation = [x, y, width, height], int(mask.sum()), encode_rle(mask)
    else:
        polygons = [polygon.round(2) for polygon in find_polygons(instance.mask)]
        corners = np.vstack(polygons) if polygons else np.zeros((1, 2))
        bbox = [*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).round(2).tolist()]
        area = round(sum(cv2.contourArea(polygon.astype(np.float32)) for polygon in polygons), 2)
        segmentation = [polygon.ravel().tolist() for polygon in polygons]
    if area == 0:
        return None
    return {
        'segmentation': segmentation,
        'area': area,
        'iscrowd': int(instance.crowd),
        'bbox': bbox,
        'category_id': COCO_IDS[instance.thing.coco_name],
    }


# Files


def _make_image(options: Options, root: Path, task: tuple[int, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw one image and write it to both sets; returns its records of COCO's ``images`` and ``annotations``."""
    split, index = task
    coco_dir, ade_dir, ade_name = (('train2017', 'training', 'train'), ('val2017', 'validation', 'val'))[split]
    image_id = 1_000_000 * split + index + 1
    scene = (draw_search if options.decoys[1] else draw_scene)(options, split, index)

    jpeg = cv2.imencode('.jpg', scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    png = cv2.imencode('.png', scene.labels)[1].tobytes()
    file_name, ade_stem = f'{image_id:012}.jpg', f'ADE_{ade_name}_{index + 1:08}'
    (root / 'coco' / coco_dir / file_name).write_bytes(jpeg)
    (root / ADE_ROOT / 'images' / ade_dir / f'{ade_stem}.jpg').write_bytes(jpeg)
    (root / ADE_ROOT / 'annotations' / ade_dir / f'{ade_stem}.png').write_bytes(png)

    width, height = options.size
    record = {'id': image_id, 'file_name': file_name, 'width': width, 'height': height}
    if options.decoys[1]:
        record['decoys'] = scene.decoys
    annotations = [annotation for annotation in map(annotate, scene.instances) if annotation]
    return record, [{**annotation, 'image_id': image_id} for annotation in annotations]


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends the workers, and one core to each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """``map`` over worker processes, or in this one."""
    if workers == 1:
        yield map
        return
    try:
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            yield partial(pool.map, chunksize=4)
    except BrokenProcessPool:
        raise MiniError(
            f'one of {workers} processes was killed, most often because memory ran out. Give fewer with --workers.'
        ) from None


def write_set(options: Options, root: Path, workers: int = 1) -> None:
    """Write a whole set into a folder.

    Args:
        options (Options): Options of the set.
        root (Path): The folder, which is made here.
        workers (int): Number of processes. The files do not depend on it. Defaults to 1.
    """
    for coco_dir, ade_dir in (('train2017', 'training'), ('val2017', 'validation')):
        (root / 'coco' / coco_dir).mkdir(parents=True)
        (root / ADE_ROOT / 'images' / ade_dir).mkdir(parents=True)
        (root / ADE_ROOT / 'annotations' / ade_dir).mkdir(parents=True)
    (root / 'coco' / 'annotations').mkdir()

    categories = [{'id': number, 'name': name} for name, number in COCO_IDS.items()]
    with _mapper(workers) as parallel_map:
        for split, (name, count) in enumerate((('train', options.train), ('val', options.val))):
            tasks = [(split, index) for index in range(count)]
            results = parallel_map(partial(_make_image, options, root), tasks)
            images, annotations = [], []
            for image, of_image in tqdm(results, desc=f'{name:5}', total=count, unit='image'):
                images.append(image)
                annotations += [{'id': len(annotations) + n + 1, **one} for n, one in enumerate(of_image)]
            content = {
                'info': {'description': f'mini {name}, drawn by tools/data/make_mini.py', 'version': str(VERSION)},
                'licenses': [],
                'images': images,
                'annotations': annotations,
                'categories': categories,
            }
            (root / 'coco' / 'annotations' / f'instances_{name}2017.json').write_text(json.dumps(content))
            tqdm.write(_summary(name, annotations, images))
    (root / 'mini.json').write_text(json.dumps({'version': VERSION, 'options': asdict(options)}, indent=2) + '\n')


def _summary(name: str, annotations: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]]) -> str:
    areas = np.array([a['area'] for a in annotations if not a['iscrowd']])
    small, medium, large = np.histogram(areas, bins=(0, *(side**2 for side in SIZE_BOUNDS), np.inf))[0]
    filled = {a['image_id'] for a in annotations}
    return (
        f'{name:5}  {len(images)} images ({len(images) - len(filled)} without objects), {len(areas)} objects '
        f'({small} small, {medium} medium, {large} large), {len(annotations) - len(areas)} crowd regions'
    )


def make_mini(options: Options, out: Path, workers: int = 1, force: bool = False) -> bool:
    """Make a set unless it is there already.

    It is written beside ``out`` and moved there when it is complete, so that ``out`` never holds a part of a set.

    Args:
        options (Options): Options of the set.
        out (Path): Its folder.
        workers (int): Number of processes. Defaults to 1.
        force (bool): Replace a set of other options that is there. Defaults to False.

    Returns:
        bool: Whether it was made; False if it was there already.

    Raises:
        MiniError: If ``out`` holds a set of other options and ``force`` is not given, or anything else, or if a process
            was killed.
    """
    out = out.resolve()
    wanted = json.loads(json.dumps({'version': VERSION, 'options': asdict(options)}))
    if out.exists() and not out.is_dir():
        raise MiniError(f'{out} is a file. Give a folder that is empty or not there yet.')
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if found:
        foreign = sorted(found - {'coco', 'ade', 'mini.json'})
        if foreign or 'mini.json' not in found:
            raise MiniError(
                f'{out} holds something that is no mini set ({", ".join((foreign or sorted(found))[:3])}). It is left '
                'as it is: give a folder that is empty or not there yet.'
            )
        there = json.loads((out / 'mini.json').read_text())
        if there.get('version') == VERSION:  # options that came later had no other value
            there['options'] = json.loads(json.dumps(asdict(Options()))) | there['options']
        if there == wanted and not force:
            return False
        if not force:
            raise MiniError(f'{out} holds another set: {_difference(there, wanted)}. Add --force to replace it.')

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as temporary:
        write_set(options, Path(temporary) / 'new', workers)
        if out.exists():
            out.rename(Path(temporary) / 'old')
        (Path(temporary) / 'new').rename(out)
    return True


def _difference(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    if there.get('version') != wanted['version']:
        return f'it was made by version {there.get("version")} of this script, this is version {wanted["version"]}'
    names = [name for name, value in wanted['options'].items() if there['options'].get(name) != value]
    return ', '.join(f'--{name} is {there["options"].get(name)}, not {wanted["options"][name]}' for name in names)


def build_parser() -> argparse.ArgumentParser:
    """The command line, whose defaults are those of :class:`Options`."""
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Options()

    def add(name: str, text: str, **kwargs: Any) -> None:
        value = getattr(default, name)
        shown = ' '.join(map(str, value)) if isinstance(value, tuple) else value
        parser.add_argument(f'--{name}', default=value, help=f'{text} (default: {shown})', **kwargs)

    parser.add_argument('out', type=Path, help='folder of the set')
    add('train', 'training images', type=int, metavar='N')
    add('val', 'validation images', type=int, metavar='N')
    add('size', 'width and height of the images in pixels', type=int, nargs=2, metavar=('W', 'H'))
    add('classes', f'classes of things, 1 to {len(THINGS)}', type=int, metavar='K')
    add('objects', 'fewest and most objects in an image that has any', type=int, nargs=2, metavar=('MIN', 'MAX'))
    add('shares', 'shares of small, medium and large objects', type=float, nargs=3, metavar=('S', 'M', 'L'))
    add('smallest', 'side of the smallest objects in pixels, the root of their area', type=int, metavar='PX')
    add('empty', 'share of images without objects', type=float, metavar='SHARE')
    add('crowd', 'share of images with a crowd region', type=float, metavar='SHARE')
    add(
        'decoys',
        'fewest and most things of no class; with any, the scene is a search',
        type=int,
        nargs=2,
        metavar=('MIN', 'MAX'),
    )
    add('seed', 'seed of the set', type=int, metavar='SEED')
    cores = os.cpu_count() or 1
    parser.add_argument(
        '--workers', type=int, default=cores, metavar='N', help=f'processes; the files are the same (default: {cores})'
    )
    parser.add_argument('--force', action='store_true', help='replace the set that is there')
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Make the set of the command line."""
    parser = build_parser()
    given = vars(parser.parse_args(args))
    out, workers, force = (given.pop(name) for name in ('out', 'workers', 'force'))
    if workers < 1:
        parser.error(f'--workers {workers}: at least 1 is needed')
    try:
        options = Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except ValueError as problem:
        parser.error(str(problem))
    try:
        made = make_mini(options, out, workers, force)
    except (MiniError, OSError) as problem:
        sys.exit(f'make_mini: {problem}')
    except KeyboardInterrupt:
        print(f'\nmake_mini: interrupted, {out} is as it was before', file=sys.stderr)
        sys.exit(130)
    print(f'{out}: {"finished" if made else "the finished set is there already, with the same options"}')


if __name__ == '__main__':
    main()
