"""Quirks of COCO's records: each is read as the stock toolbox reads it, or mended; all are counted and told."""

from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import UserError
from .description import Split
from .files import count, listed, read_head, sample


def mend(split: Split, name: str, with_masks: bool) -> tuple[list[str], list[tuple[bool, bool]]]:
    """Mend the records of a split in place; where any is, the user's own file is not used as it is.

    Args:
        split (Split): The split.
        name (str): Its name, for the notes.
        with_masks (bool): Whether the model learns outlines: an object without one is then a region to ignore.

    Returns:
        tuple[list[str], list[tuple[bool, bool]]]: A note for each kind of quirk, and for each image with a rotation in
            EXIF whether its record has the size as stored, and as shown.

    Raises:
        UserError: If no image is left.
    """
    notes: list[str] = []
    turned = _mend_images(split, name, notes)
    _mend_annotations(split, name, with_masks, notes)
    return notes, turned


def _mend_images(split: Split, name: str, notes: list[str]) -> list[tuple[bool, bool]]:
    ids = Counter(image['id'] for image in split.images)
    if twice := [key for key, number in ids.items() if number > 1]:
        raise UserError(
            f'{name}: {count(len(twice), "image id")} given to more than one image ({listed(twice)}), so nobody knows '
            "whose the objects are; give each image an id of its own in 'images'"
        )
    if any(not isinstance(key, int) for key in ids):
        numbers = {key: number for number, key in enumerate(ids, 1)}
        split.images = [dict(image, id=numbers[image['id']]) for image in split.images]
        split.annotations = [dict(one, image_id=numbers.get(one.get('image_id'))) for one in split.annotations]
        notes.append(f'{name}: ids of images that are no numbers were numbered')
        split.source = None

    there = [image for image in split.images if Path(split.image_root, image['file_name']).is_file()]
    if len(there) < len(split.images):
        names = [image['file_name'] for image in split.images if image not in there] if len(split.images) < 1000 else []
        example = f' ({listed(names, 3)})' if names else ''
        if not there:
            raise UserError(f'{name}: none of its {len(split.images)} images is below {split.image_root}{example}')
        notes.append(
            f'{name}: {count(len(split.images) - len(there), "image")} of {len(split.images)} not there{example}; '
            'left out, with their objects'
        )
        lost = {image['id'] for image in split.images} - {image['id'] for image in there}
        split.annotations = [one for one in split.annotations if one.get('image_id') not in lost]
        split.images, split.source = there, None
    if not split.images:
        raise UserError(f'{name}: no images')
    return _check_heads(split, name, notes)


def _check_heads(split: Split, name: str, notes: list[str]) -> list[tuple[bool, bool]]:
    """Compare the sizes of the records with those of the files."""
    without = [image for image in split.images if not (image.get('width') and image.get('height'))]
    looked_at = {id(image): image for image in [*without, *sample(split.images)]}.values()
    turned, wrong, deep, broken = [], [], [], []
    for image in looked_at:
        head = read_head(Path(split.image_root, image['file_name']))
        if head is None:
            broken.append(image)
            continue
        if head.deep:
            deep.append(image['file_name'])
        if not (image.get('width') and image.get('height')):
            image['width'], image['height'] = head.shown
            split.source = None
        size = image['width'], image['height']
        if head.turned:
            turned.append((size == head[:2], size == head.shown))
        if size not in (head[:2], head.shown):
            wrong.append(image)
            image['width'], image['height'] = head.shown
    if without:
        notes.append(f'{name}: {count(len(without), "image")} without width and height; taken from the files')
    if broken:
        if len(broken) == len(split.images):
            raise UserError(f'{name}: none of its images can be read, such as {broken[0]["file_name"]}')
        lost = {image['id'] for image in broken}
        split.images = [image for image in split.images if image['id'] not in lost]
        split.annotations = [one for one in split.annotations if one.get('image_id') not in lost]
        names = listed([image['file_name'] for image in broken], 3)
        notes.append(f'{name}: {count(len(broken), "image")} cannot be read ({names}); left out, with their objects')
        split.source = None
    if wrong:
        names = listed([image['file_name'] for image in wrong], 3)
        notes.append(
            f'{name}: the size of {count(len(wrong), "image")} is another in the annotations than in the file '
            f"({names}); the file's is taken, the boxes are left as they are: look at them (browse.py)"
        )
        split.source = None
    if deep:
        notes.append(_deep_note(name, deep))
    return turned


def _deep_note(name: str, deep: list[str]) -> str:
    return (
        f'{name}: {count(len(deep), "image")} with more than 8 bits a channel ({listed(deep, 3)}); the toolbox '
        'reads the upper 8 bits alone: images that use few of their bits come out black'
    )


def _mend_annotations(split: Split, name: str, with_masks: bool, notes: list[str]) -> None:
    sizes = {image['id']: (image['width'], image['height']) for image in split.images}
    counts: Counter[str] = Counter()
    kept = []
    ids: set = set()
    for one in split.annotations:
        if one.get('image_id') not in sizes:
            counts['of no image'] += 1
            continue
        one = dict(one)
        size = sizes[one['image_id']]
        outline, flaw = read_outline(one.get('segmentation'))
        if flaw:
            counts[flaw] += 1
            one.pop('segmentation', None)
        if not _has_box(one):
            if outline is None:
                counts['without a box'] += 1
                continue
            one['bbox'] = _box_of(outline, size)
            counts['box from outline'] += 1
        x, y, width, height = one['bbox']
        if one.get('area') is None:
            one['area'] = _area_of(outline, size) if outline is not None else float(width * height)
            counts['area'] += 1
        if one.get('iscrowd') is None:
            one['iscrowd'] = 0
            counts['iscrowd'] += 1
        inside = max(0, min(x + width, size[0]) - max(x, 0)) * max(0, min(y + height, size[1]) - max(y, 0))
        if inside <= 0:
            counts['outside'] += 1
            continue
        if one['area'] <= 0 or width < 1 or height < 1:
            counts['tiny'] += 1
            continue
        if x < -1 or y < -1 or x + width > size[0] + 1 or y + height > size[1] + 1:
            counts['border'] += 1
        if with_masks and outline is None:
            one.update(iscrowd=1, segmentation=[[x, y, x + width, y, x + width, y + height, x, y + height]])
            counts['no outline'] += 1
        if one['iscrowd']:
            counts['crowd'] += 1
        if one.get('ignore'):
            counts['ignore'] += 1
        key = one.get('id')
        if not isinstance(key, int) or key < 1 or key in ids:
            counts['twice' if key in ids else 'id'] += 1
        ids.add(key)
        kept.append(one)
    if counts['twice'] or counts['id']:
        for number, one in enumerate(kept, 1):
            one['id'] = number
    split.annotations = kept
    if set(counts) - {'border', 'crowd', 'ignore'}:
        split.source = None
    notes += [f'{name}: {count(counts[kind], "object")} {text}' for kind, text in TOLD.items() if counts[kind]]
    if empty := len(sizes) - len({one['image_id'] for one in kept if not one['iscrowd']}):
        notes.append(f'{name}: {count(empty, "image")} of {len(sizes)} without objects')


TOLD = {
    'of no image': 'of an image that is not listed; left out, as the toolbox does',
    'without a box': 'with neither box nor outline; left out (the toolbox ends with KeyError)',
    'box from outline': "without 'bbox'; taken from the outline",
    'area': "without 'area'; computed (the toolbox ends with KeyError)",
    'iscrowd': "without 'iscrowd'; taken for single objects",
    'outside': 'with a box wholly outside of its image; left out in training, as the toolbox does, and in evaluation',
    'tiny': 'below a pixel in width, height or area; left out in training, as the toolbox does, and in evaluation',
    'border': 'with a box beyond the border of its image; cut off there in training, as the toolbox does',
    'two points': 'with an outline of fewer than three points; taken for none',
    'odd': 'with an outline of an odd number of coordinates, or of no numbers; taken for none',
    'no outline': 'without an outline, and the model learns outlines; regions to ignore',
    'crowd': 'that are crowd regions; ignored in training and not counted in evaluation, as the toolbox does',
    'ignore': "with 'ignore'; background in training, as the toolbox does",
    'twice': 'with the id of another; numbered anew (the toolbox refuses them)',
    'id': 'with an id that is 0, negative or no number; numbered anew (COCOeval takes a match with object 0 for none)',
}


def read_outline(segmentation: object) -> tuple[list | dict | None, str]:
    """An outline that pycocotools can read, or None, and what is wrong with it (``''`` where it is right or absent).

    Polygons of fewer than three points are dropped beside others that are right, as mmdet does.
    """
    if isinstance(segmentation, dict) and {'counts', 'size'} <= set(segmentation):
        return segmentation, ''
    if not segmentation:
        return None, ''
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return None, 'odd'
    polygons = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
    if polygons:
        return polygons, ''
    return None, 'two points' if all(len(p) % 2 == 0 for p in segmentation) else 'odd'


def _has_box(one: dict) -> bool:
    box = one.get('bbox')
    return isinstance(box, list | tuple) and len(box) == 4 and all(np.isfinite(box))


def _rle(outline: list | dict, size: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of an outline."""
    from pycocotools import mask as coco_mask

    if isinstance(outline, dict):
        return coco_mask.frPyObjects(outline, size[1], size[0]) if isinstance(outline['counts'], list) else outline
    return coco_mask.merge(coco_mask.frPyObjects(outline, size[1], size[0]))


def _box_of(outline: list | dict, size: tuple[int, int]) -> list[float]:
    if isinstance(outline, list):
        corners = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in outline])
        low, high = corners.min(0), corners.max(0)
        return [*low.tolist(), *(high - low).tolist()]
    from pycocotools import mask as coco_mask

    return [float(value) for value in coco_mask.toBbox(_rle(outline, size))]


def _area_of(outline: list | dict, size: tuple[int, int]) -> float:
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(_rle(outline, size)))
