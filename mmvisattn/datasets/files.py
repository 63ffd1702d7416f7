"""Files of a folder: what is there, which split it belongs to, and what the head of an image says."""

import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from ..errors import UserError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
SPLIT_NAMES = {
    'train': ('train', 'training', 'trn'),
    'val': ('val', 'valid', 'validation', 'dev'),
    'test': ('test', 'testing', 'tst'),
}
CHECKED_IMAGES = 5000  # whose heads are read; of larger sets, so many spread over the whole
ORIENTATION = 0x0112  # EXIF's tag

T = TypeVar('T')


class Head(NamedTuple):
    """What the head of an image says.

    Args:
        width (int): As stored, in pixels.
        height (int): As stored, in pixels.
        turned (bool): Whether EXIF has it shown with width and height exchanged.
        deep (bool): Whether it has more than 8 bits a channel.
    """

    width: int
    height: int
    turned: bool
    deep: bool

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height after the rotation that EXIF names, as mmcv reads it."""
        return (self.height, self.width) if self.turned else (self.width, self.height)


def walk(root: Path) -> list[Path]:
    """All files below a folder in a fixed order, links followed, without hidden ones.

    Raises:
        UserError: If it is no folder, or holds nothing.
    """
    if not root.is_dir():
        raise UserError(f'--data {str(root)!r} is no folder; give the one that holds images and annotations')
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(('.', '__')))
        found += [Path(folder, name) for name in sorted(files) if not name.startswith('.')]
    if not found:
        raise UserError(f'--data {str(root)!r} is empty; give the folder that holds images and annotations')
    return found


def is_image(path: Path) -> bool:
    """Whether its name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_head(path: Path) -> Head | None:
    """The head of an image, or None if it is broken."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            deep = image.mode.startswith('I') or image.mode == 'F'
            return Head(image.width, image.height, turned, deep)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return None


def sample(items: Sequence[T], most: int = CHECKED_IMAGES) -> list[T]:
    """All, or so many of them spread over the whole."""
    step = -(-len(items) // most) if items else 1
    return list(items[::step])


def split_of(name: str) -> str | None:
    """The split that a name of a file or folder speaks of: ``instances_val2017`` → ``val``."""
    words = re.findall(r'[a-z]+', name.lower())
    for split, names in SPLIT_NAMES.items():
        if any(word in names for word in words):
            return split
    return None


def split_of_path(path: Path, root: Path) -> str | None:
    """As :func:`split_of`, from the file's name, else from the nearest of the folders below ``root``."""
    parts = path.relative_to(root).with_suffix('').parts
    return next((split for part in reversed(parts) if (split := split_of(part))), None)


def make_split(names: Iterable[str], share: float) -> set[str]:
    """Which images are for validation: seeded, and the same for the same names.

    Args:
        names (Iterable[str]): Names of all images.
        share (float): Share of them, above 0 and below 1.

    Raises:
        UserError: If there are fewer than two images.
    """
    ordered = sorted(names)
    if len(ordered) < 2:
        raise UserError(f'{len(ordered)} image: training and validation need one each; add images')
    count = min(max(round(share * len(ordered)), 1), len(ordered) - 1)
    return set(random.Random(0).sample(ordered, count))


def read_names(path: Path) -> list[str]:
    """The lines of a text file that say something, without a byte order mark.

    Raises:
        UserError: If it is not UTF-8.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 ({error.reason}); save it as UTF-8') from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith('#')]


def listed(names: Iterable[object], most: int = 5) -> str:
    """A few names in a line: ``a, b, c and 4 more``."""
    texts = [str(name) for name in names]
    rest = len(texts) - most
    return ', '.join(texts[:most]) + (f' and {rest} more' if rest > 0 else '')


def count(number: int, what: str, many: str | None = None) -> str:
    """``1 image`` or ``7 images``."""
    return f'{number} {what if number == 1 else many or what + "s"}'


def orientation(turned: list[tuple[bool, bool]], notes: list[str]) -> bool:
    """Whether the annotations are of the images without the rotation that EXIF names.

    Args:
        turned (list[tuple[bool, bool]]): Of each image with such a rotation, whether its annotation has the size as
            stored, and as shown.
        notes (list[str]): Gets a note.
    """
    if not turned:
        return False
    stored = sum(a and not b for a, b in turned)
    shown = sum(b and not a for a, b in turned)
    ignore = stored > shown
    notes.append(
        f'{count(len(turned), "image")} with a rotation in EXIF; the annotations are of the images '
        + ('as stored: read without the rotation' if ignore else 'as shown: read with the rotation')
        + (f' ({min(stored, shown)} of them say otherwise)' if min(stored, shown) else '')
    )
    return ignore
