"""Damaged pictures and annotations: told before or when they are read, and not trained with in silence."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .errors import UserError, nearest
from .registry import TRANSFORMS

# What a whole file has near its end, by the format that its first bytes tell.
ENDS = {'JPEG': b'\xff\xd9', 'PNG': b'IEND'}
TAIL = 4096
MOST_BYTES = 100 * 2**20  # of annotations that are read once more to be checked


@TRANSFORMS.register_module()
class CheckFiles:
    """Refuse a picture or label map that is missing, empty, cut off or of another size than its partner.

    It stands before ``LoadImageFromFile``. OpenCV fills what is cut off with grey and says nothing. Headers and ends
    of the files are read, nothing is decoded.

    Raises:
        UserError: With the file.
    """

    def __call__(self, results: dict) -> dict:
        """Look at the files; ``results`` stays as it is."""
        paths = [results[key] for key in ('img_path', 'seg_map_path') if results.get(key)]
        sizes = [check_picture(path) for path in paths if '://' not in path]
        # A picture may be turned when it is read, as its EXIF data say.
        if len({tuple(sorted(size)) for size in sizes}) > 1:
            (width, height), (label_width, label_height) = sizes
            raise UserError(
                f'label map {paths[1]!r} is of {label_width}×{label_height} pixels and its picture of {width}×{height}'
                ': it belongs to another picture, or one of the two was resized'
            )
        return results


def check_picture(path: str | Path) -> tuple[int, int]:
    """Refuse a file that is no whole picture.

    Args:
        path (str | Path): The file.

    Returns:
        tuple[int, int]: Its width and height in pixels.

    Raises:
        UserError: With the file and what is wrong with it.
    """
    try:
        with open(path, 'rb') as file:
            length = file.seek(0, os.SEEK_END)
            if not length:
                raise UserError(f'picture {str(path)!r} is empty (0 bytes); copy it anew, or take it out of the data')
            file.seek(max(length - TAIL, 0))
            tail = file.read()
            file.seek(0)
            with Image.open(file) as picture:
                kind, size = picture.format, picture.size
    except FileNotFoundError:
        raise UserError(f'picture {str(path)!r} does not exist, and the data name it; look into its folder') from None
    except UnidentifiedImageError:
        raise UserError(f'{str(path)!r} is no picture, whatever its name says; take it out of the data') from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f'picture {str(path)!r} cannot be read: {error}') from error
    if kind in ENDS and ENDS[kind] not in tail:
        raise UserError(
            f'picture {str(path)!r} is cut off: its end is missing; copy it anew, or take it out of the data'
        )
    return size


def report_annotations(ann_file: str | Path, images: str | Path) -> str | None:
    """Look through annotations of COCO's form for what mmdet leaves out without a word.

    Args:
        ann_file (str | Path): The annotations.
        images (str | Path): The folder of the pictures.

    Returns:
        str | None: A line that counts what will be left out, or None where nothing is or the file is larger than
        100 MiB.

    Raises:
        UserError: If the file is not of COCO's form, or names pictures that are not there.
    """
    if os.path.getsize(ann_file) > MOST_BYTES:
        return None
    try:
        content = json.loads(Path(ann_file).read_bytes())
        pictures = {image['id']: image for image in content['images']}
        categories = {category['id'] for category in content['categories']}
        annotations = content.get('annotations', [])
        _check_presence(ann_file, Path(images), [image['file_name'] for image in pictures.values()])
        counts: Counter[str] = Counter()
        for annotation in annotations:
            if reason := _reason(annotation, pictures, categories):
                counts[reason] += 1
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f'annotations {str(ann_file)!r} are not of the form of COCO: {type(error).__name__}: {error}'
        ) from error
    if not counts:
        return None
    told = ', '.join(f'{count} {reason}' for reason, count in sorted(counts.items()))
    return f'{ann_file}: {counts.total()} of {len(annotations)} objects are left out of training: {told}'


def _check_presence(ann_file: str | Path, folder: Path, names: Iterable[str]) -> None:
    listed: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        place = folder / name
        if place.parent not in listed:
            there = place.parent.is_dir()
            listed[place.parent] = set(os.listdir(place.parent)) if there else set()
        if place.name not in listed[place.parent]:
            missing.append(place)
    if missing:
        near = nearest(missing[0].name, sorted(listed[missing[0].parent])[:10000])
        raise UserError(
            f'{str(ann_file)!r} names {len(missing)} pictures that are not in {str(folder)!r}, such as '
            f'{missing[0].name!r}{near}; put them there, or take them out of the annotations'
        )


def _reason(annotation: dict, pictures: dict, categories: set) -> str | None:
    """Why mmdet leaves an annotation out of training, if it does."""
    if annotation['category_id'] not in categories:
        return f'of a category that the file does not list (id {annotation["category_id"]})'
    if annotation['image_id'] not in pictures:
        return 'of a picture that the file does not list'
    picture = pictures[annotation['image_id']]
    x, y, width, height = annotation['bbox']
    if min(x + width, picture['width']) <= max(x, 0) or min(y + height, picture['height']) <= max(y, 0):
        return 'with a box that is empty or outside of its picture'
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return 'smaller than a pixel'
    outline = annotation.get('segmentation')
    if isinstance(outline, list) and outline and not any(len(one) >= 6 and len(one) % 2 == 0 for one in outline):
        return 'with polygons of fewer than three points (ignored, not background)'
    return None
