"""The values in files of labels, one a pixel."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

VOID = 255


@dataclass
class Found:
    """What all label files together hold.

    Args:
        pixels (Counter): Pixels of each value or colour.
        images (Counter): Files that each is in.
        first (dict): The first file of each.
        modes (Counter): Files of each mode of pillow.
        palette (dict): Colours of the indices, of files that have them.
    """

    pixels: Counter = field(default_factory=Counter)
    images: Counter = field(default_factory=Counter)
    first: dict = field(default_factory=dict)
    modes: Counter = field(default_factory=Counter)
    palette: dict = field(default_factory=dict)


def load_label(path: Path, by_colour: bool = False) -> np.ndarray:
    """The values of a file of labels: (H, W), or (H, W, 3) where it has colours.

    Args:
        path (Path): The file.
        by_colour (bool): Whether numbers with a palette are read as its colours. Defaults to False.

    Raises:
        UserError: If it is broken.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ('RGBA', 'CMYK', 'YCbCr') or by_colour and image.mode == 'P':
                image = image.convert('RGB')
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f'{path} cannot be read as labels ({error}); take it away, or save it anew') from error
    if values.ndim == 3 and values.shape[2] == 2:  # grey with transparency
        values = values[..., 0]
    return values.astype(np.uint8) if values.dtype == bool else values


def survey(paths: list[Path], colours_known: bool) -> tuple[bool, Found]:
    """Count the values of all label files.

    Args:
        paths (list[Path]): The files.
        colours_known (bool): Whether the user lists colours of the classes.

    Returns:
        tuple[bool, Found]: Whether it is the colours that count, and what was counted: colours, or else numbers.
    """
    numbers, colours = Found(), Found()
    by_colour, conflict = False, False
    for path in paths:
        with Image.open(path) as image:
            mode = image.mode
            palette = image.getpalette() if mode == 'P' else None
        values = load_label(path)
        numbers.modes[mode] += 1
        if values.ndim == 3:
            packed = (values.astype(np.int64) * (65536, 256, 1)).sum(-1)
            keys, counts = np.unique(packed, return_counts=True)
            of_colour = {(int(k) >> 16, int(k) >> 8 & 255, int(k) & 255): int(n) for k, n in zip(keys, counts)}
            by_colour |= any(len(set(colour)) > 1 for colour in of_colour)
            of_number = {colour[0]: number for colour, number in of_colour.items()}
        else:
            keys, counts = np.unique(values, return_counts=True)
            of_number = {int(k): int(n) for k, n in zip(keys, counts)}
            of_colour = {}
            for k, n in of_number.items():
                colour = tuple(palette[3 * k : 3 * k + 3]) if palette and len(palette) >= 3 * k + 3 else (k, k, k)
                of_colour[colour] = of_colour.get(colour, 0) + n
                if palette:
                    conflict |= numbers.palette.setdefault(k, colour) != colour
        for found, of_file in ((numbers, of_number), (colours, of_colour)):
            found.pixels.update(of_file)
            found.images.update(of_file.keys())
            for key in of_file:
                found.first.setdefault(key, path)
        if len(colours.pixels) > 4096:
            break
    colours.modes = numbers.modes
    if numbers.modes.get('P') and colours_known:
        conflict |= bool(numbers.palette)
    return by_colour or conflict, colours if by_colour or conflict else numbers


def check_smeared(root: Path, found: Found, names: list[str], by_colour: bool) -> None:
    """Refuse labels between whose values others have come, by JPEG or by smoothing.

    Raises:
        UserError: With a file.
    """
    number = len(found.pixels)
    extremes = sum(found.pixels[value] for value in (0, VOID))
    smoothed = not by_colour and number > 16 and extremes > 0.8 * sum(found.pixels.values())
    jpeg = [path for path in found.first.values() if path.suffix.lower() in ('.jpg', '.jpeg')]
    if number > 256 or smoothed or jpeg and number > max(len(names), 2) + 2:
        some = jpeg[0] if jpeg else found.first[sorted(found.pixels)[number // 2]]
        why = ', and JPEG smears values' if jpeg else ', most of them few pixels' if smoothed else ''
        raise UserError(
            f'--data {root}: the labels have {number} values (such as in {some}){why}; labels have one value a class: '
            'save them as PNG, without smoothing'
        )
