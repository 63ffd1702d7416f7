"""Images and labels for each pixel in parallel folders: pairs of files, what the values mean, names of the classes."""

import csv
import json
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from .description import SegmentationData, distinct_palette
from .files import count, is_image, listed, orientation, read_head, read_names, sample, split_of, split_of_path

VOID = 255
LABEL_WORDS = re.compile(
    r'labels?|masks?|annotations?|annots?|segmentation(?:class(?:aug)?)?|ground_?truth|targets?'
    r'|(?<![a-z])(?:gt(?:fine|coarse)?|anns?|segs?)(?![a-z])'
)
IMAGE_WORDS = re.compile(
    r'(?<![a-z])(?:images?|imgs?|jpegimages|leftimg8bit|photos?|pictures?|inputs?|raw|rgb|dir)(?![a-z])'
)
FILE_WORDS = re.compile(
    r'[_\-. ](?:leftimg8bit|gtfine|gtcoarse|labeltrainids|labelids|labels?|masks?|gt|segs?|segmentation|anns?'
    r'|annotations?|images?|imgs?|l|sat)$',
    re.IGNORECASE,
)
NAME_FILES = (
    'classes',
    'class_names',
    'labels',
    'label_names',
    'names',
    'labelmap',
    'class_dict',
    'class_list',
    'id2label',
)
VOID_NAMES = {'void', 'ignore', 'ignored', 'unlabeled', 'unlabelled', 'unknown', 'dontcare', 'none', 'other (void)'}
Value = int | tuple[int, int, int]


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


def read_labels(root: Path, files: list[Path], zero_label: str | None) -> SegmentationData:
    """Pairs of images and labels, and what each value of the labels means.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        zero_label (str | None): What 0, or black, is: ``class``, ``void``, or None to be found out.

    Raises:
        UserError: If there are no pairs, sizes differ, or values contradict the names.
    """
    notes: list[str] = []
    pairs = find_pairs(root, files, notes)
    everything = [pair for split in pairs.values() for pair in split]
    ignore_orientation, sizes = _check_sizes(everything, notes)
    names, colours = read_classes(root, files, notes)
    by_colour, found = survey([label for _, label in everything], bool(colours))
    _check_smeared(root, found, names, by_colour)
    settle = _by_colour if by_colour else _by_index
    data = settle(root, names, colours, found, zero_label, notes)
    data.pairs, data.sizes, data.ignore_orientation = pairs, sizes, ignore_orientation
    if len(data.classes) < 2:
        raise UserError(
            f'--data {root}: one class ({listed(data.classes)}) and void; a network would say it everywhere. '
            '--zero-label class takes 0 for a class of its own'
        )
    if len(data.classes) > VOID:
        raise UserError(f'--data {root}: {len(data.classes)} classes, and labels of 8 bits tell 255 apart')
    unseen = [name for name, number in zip(data.classes, data.pixels) if not number]
    if unseen:
        notes.append(f'{count(len(unseen), "class", "classes")} without a pixel: {listed(unseen)}; kept')
    return data


# Files


def find_pairs(root: Path, files: list[Path], notes: list[str]) -> dict[str, list[tuple[Path, Path]]]:
    """Images with their labels by split.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        notes (list[str]): Gets what the user is to know.

    Raises:
        UserError: If there are none, or one image has several labels.
    """
    pictures = [path for path in files if is_image(path) or path.suffix.lower() == '.gif']
    pictures = [path for path in pictures if 'SegmentationObject' not in path.parts]
    # Folders around all of them say nothing.
    base = Path(os.path.commonpath([path.parent for path in pictures])) if pictures else root
    labels = [path for path in pictures if _in_label_folder(path, base)]
    images = [path for path in pictures if not _in_label_folder(path, base)]
    if not labels:  # side by side in one folder
        stems = Counter(path.with_suffix('') for path in pictures)
        labels = [
            path
            for path in pictures
            if LABEL_WORDS.search(_ending(path.stem))
            or path.suffix.lower() == '.png'
            and stems[path.with_suffix('')] > 1
        ]
        images = [path for path in pictures if path not in set(labels)]
    by_key: dict[tuple, list[Path]] = defaultdict(list)
    for label in labels:
        by_key[_key(label, base)].append(label)
    if images and not any(_key(image, base) in by_key for image in images):
        # Folders of other names: the stems alone.
        by_key = defaultdict(list)
        for label in labels:
            by_key[(), _key(label, base)[1]].append(label)
        keys: dict[Path, tuple] = {image: ((), _key(image, base)[1]) for image in images}
    else:
        keys = {image: _key(image, base) for image in images}
    lists = _split_lists({root, base}, files)
    pairs: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    without, used = [], set()
    outside = 0
    for image in images:
        of_image = by_key.get(keys[image], [])
        if not of_image:
            without.append(image)
            continue
        label = _choose(of_image, image)
        used.update(of_image)
        if lists:
            splits = [name for name, stems in lists.items() if image.stem in stems or _key(image, base)[1] in stems]
            outside += not splits
        else:
            splits = [split_of_path(image, root) or split_of_path(label, root) or 'all']
        for split in splits:
            pairs[split].append((image, label))
    if not pairs:
        raise UserError(
            f'--data {root}: no image has labels of its pixels ({len(images)} images, {len(labels)} in folders of '
            'labels); put them into parallel folders, such as images/a.jpg and labels/a.png'
        )
    if without:
        names = listed([image.relative_to(root) for image in without], 3)
        notes.append(f'{count(len(without), "image")} without labels ({names}); left out')
    if rest := [label for label in labels if label not in used]:
        names = listed([label.relative_to(root) for label in rest], 3)
        notes.append(f'{count(len(rest), "file")} of labels without an image ({names}); left out')
    if outside:
        notes.append(f'{count(outside, "image")} in no list of a split; left out')
    if 'all' in pairs and len(pairs) > 1:
        notes.append(f'{count(len(pairs.pop("all")), "image")} in no folder of a split; left out')
    first = next(iter(pairs.values()))[0]
    notes.append(f'pairs such as {first[0].relative_to(root)} and {first[1].relative_to(root)}')
    notes += [f'{name}: {count(len(split), "image")}' for name, split in pairs.items() if name != 'all']
    return dict(pairs)


def _in_label_folder(path: Path, root: Path) -> bool:
    """Whether the innermost folder that speaks of images or labels speaks of labels."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        if LABEL_WORDS.search(part.lower()):
            return True
        if IMAGE_WORDS.search(part.lower()):
            return False
    return False


def _ending(stem: str) -> str:
    match = FILE_WORDS.search(stem)
    return match.group().lower() if match else ''


def _key(path: Path, root: Path) -> tuple[tuple[str, ...], str]:
    """What an image and its labels have in common: folders and stem without the words for one or the other."""
    folders = []
    for part in path.relative_to(root).parts[:-1]:
        part = IMAGE_WORDS.sub('', LABEL_WORDS.sub('', part.lower())).strip('_-. ')
        if part:
            folders.append(part)
    stem = path.stem
    while (shorter := FILE_WORDS.sub('', stem)) != stem and shorter:
        stem = shorter
    return tuple(folders), stem


def _choose(labels: list[Path], image: Path) -> Path:
    """The labels of an image; of Cityscapes' several files those that are trained on."""
    for ending in ('labelTrainIds', 'labelIds'):
        if named := [label for label in labels if label.stem.endswith(ending)]:
            return named[0]
    if len(labels) > 1:
        raise UserError(f'{image} has {len(labels)} files of labels: {listed(labels)}; leave one')
    return labels[0]


def _split_lists(roots: set[Path], files: list[Path]) -> dict[str, set[str]]:
    """Stems of the images of each split, from ``ImageSets/Segmentation`` or from lists in the folder itself."""
    lists = {}
    for path in files:
        inside = 'ImageSets' in path.parts and path.parent.name != 'Main'
        name = split_of(path.stem)
        if path.suffix == '.txt' and (inside or path.parent in roots) and name and path.stem.lower() != 'trainval':
            lists[name] = {Path(line.split()[0]).stem for line in read_names(path)}
    return lists if 'train' in lists or 'val' in lists else {}


def _check_sizes(pairs: list[tuple[Path, Path]], notes: list[str]) -> tuple[bool, list[tuple[int, int]]]:
    """Whether labels are of the images without EXIF's rotation, and the sizes of the images.

    Raises:
        UserError: If an image and its labels differ in size.
    """
    turned, sizes, deep, wrong = [], [], [], []
    for image, label in sample(pairs):
        head, of_label = read_head(image), read_head(label)
        for path, read in ((image, head), (label, of_label)):
            if read is None:
                raise UserError(f'{path} cannot be read as an image; take it away, or save it anew')
        assert head is not None and of_label is not None
        size = of_label[:2]
        if head.turned:
            turned.append((size == head[:2], size == head.shown))
        if head.deep:
            deep.append(image.name)
        if size not in (head[:2], head.shown):
            wrong.append((image, head.shown, size))
        sizes.append(size)
    if wrong:
        image, shown, size = wrong[0]
        raise UserError(
            f'{count(len(wrong), "image")} of another size than the labels, such as {image} of {shown[0]}×{shown[1]} '
            f'pixels and labels of {size[0]}×{size[1]}; make the labels anew, or resize them with nearest neighbours'
        )
    if deep:
        notes.append(
            f'{count(len(deep), "image")} with more than 8 bits a channel; the toolbox reads the upper 8 alone'
        )
    return orientation(turned, notes), sizes


# Values


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


def _check_smeared(root: Path, found: Found, names: list[str], by_colour: bool) -> None:
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


def read_classes(
    root: Path, files: list[Path], notes: list[str]
) -> tuple[list[str], list[tuple[int, int, int]] | None]:
    """Names of the classes, and their colours where they are given, from a file such as ``classes.txt``.

    Read are lines of a name, of a number and a name, of ``name r g b`` and ``r g b name`` (also with commas and
    colons), and JSON of names or of numbers with names.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        notes (list[str]): Gets the name of the file.

    Raises:
        UserError: If the file cannot be understood.
    """
    stems = {name: i for i, name in enumerate(NAME_FILES)}
    candidates = [
        path
        for path in files
        if path.suffix.lower() in ('.txt', '.csv', '.json', '.names') and path.stem.lower() in stems
    ]
    if not candidates:
        return [], None
    path = min(candidates, key=lambda path: (len(path.parts), stems[path.stem.lower()]))
    if path.suffix == '.json':
        names, colours = _names_of_json(path), None
    else:
        names, colours = _names_of_text(path)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'{path}: {listed(twice)} stand there more than once; give each class a name of its own')
    notes.append(f'{count(len(names), "class", "classes")} named in {path.relative_to(root)}')
    return names, colours


def _names_of_json(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding='utf-8-sig'))
    content = content.get('classes', content) if isinstance(content, dict) else content
    if isinstance(content, dict) and all(str(key).isdigit() for key in content):
        numbers = {int(key): str(name) for key, name in content.items()}
        return [numbers.get(i, f'class_{i}') for i in range(max(numbers) + 1)]
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    raise UserError(f'{path}: neither a list of names nor names by number; write one of these')


def _names_of_text(path: Path) -> tuple[list[str], list[tuple[int, int, int]] | None]:
    rows = []
    for line in read_names(path):
        line = line.rstrip(':;,')
        cells = (
            next(csv.reader([line]))
            if ',' in line
            else re.split(r'[:\t]', line)
            if re.search(r'[:\t]', line)
            else [line]
        )
        if len(cells) == 2 and ',' in cells[1]:  # CVAT's `name:r,g,b`
            cells = [cells[0], *cells[1].split(',')]
        if ',' in line and ':' in cells[0]:
            cells = [*cells[0].split(':'), *cells[1:]]
        cells = [cell.strip() for cell in cells if cell.strip(' :')]
        cells[-1] = cells[-1].rstrip(': ')
        if len(cells) == 1 and (match := re.fullmatch(r'(\S.*?)\s+(\d+)\s+(\d+)\s+(\d+)', cells[0])):
            cells = list(match.groups())
        if len(cells) == 1 and (match := re.fullmatch(r'(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)', cells[0])):
            cells = [match[4], match[1], match[2], match[3]]
        if len(cells) == 1 and (match := re.fullmatch(r'(\d+)\s+(\S.*)', cells[0])):
            cells = [match[1], match[2]]
        rows.append(cells)
    if rows and len(rows[0]) > 1 and not any(cell.isdigit() for cell in rows[0]):
        rows = rows[1:]  # the titles of a table
    coloured = [len(row) >= 4 and all(cell.isdigit() for cell in row[1:4]) for row in rows]
    if rows and all(coloured):
        return [row[0] for row in rows], [(int(row[1]), int(row[2]), int(row[3])) for row in rows]
    if rows and all(len(row) == 2 and row[0].isdigit() for row in rows):
        numbers = {int(row[0]): row[1] for row in rows}
        first = min(numbers)
        return [numbers.get(i, f'class_{i}') for i in range(min(first, 1), max(numbers) + 1)], None
    if any(coloured):
        raise UserError(
            f'{path}: colours in some lines and not in line {coloured.index(False) + 1}; give each class one'
        )
    return [' '.join(row) for row in rows], None


def _by_index(
    root: Path, names: list[str], colours: list | None, found: Found, zero: str | None, notes: list[str]
) -> SegmentationData:
    """What numbers mean."""
    values = sorted(found.pixels)
    kind = 'palette' if found.modes.get('P') else 'index'
    convert = any(mode not in ('P', 'L', '1') for mode in found.modes)
    share = {value: found.pixels[value] / sum(found.pixels.values()) for value in values}
    if values == [0, VOID] and kind == 'index':
        names = names if len(names) == 2 else ['background', *(names or ['foreground'])]
        notes.append(f'labels of 0 and 255 alone: two classes, {listed(names)} (stock would take 255 for void)')
        return _data(root, 'binary', names, {0: 0, VOID: 1}, found, notes, convert=True)
    mapping = {VOID: VOID} if VOID in values else {}
    if VOID in values:
        notes.append(f'255 is void ({share[VOID]:.1%} of the pixels)')
    rest = [value for value in values if value != VOID]
    if not rest:
        raise UserError(f'--data {root}: the labels are 255 alone, which is void')
    most = rest[-1]
    if names:
        limit = len(names) if zero != 'class' else len(names) - (names[0].lower() != 'background')
        if most > len(names):
            raise UserError(
                f'--data {root}: {found.first[most]} has label {most}, and there are {len(names)} names; labels go to '
                f'{limit - 1}, or to {limit} where 0 is void: add the names, or mend the labels'
            )
        if most == len(names) and zero != 'void' and (zero == 'class' or len(names) == 1):
            names = ['background', *names]
            notes.append(f'labels to {most} and {most} names: 0 is a class, called background')
        elif most == len(names) or zero == 'void' or names[0].lower() in VOID_NAMES and zero != 'class':
            if most < len(names):
                notes.append(f'0 is void: {"--zero-label" if zero else "its name"} says so ({names[0]})')
                names = names[1:]
            else:
                notes.append(f'labels to {most} and {most} names: 0 is void ({share.get(0, 0):.1%} of the pixels)')
            return _data(root, kind, names, _reduced(rest, mapping), found, notes, convert, reduce=True)
        mapping |= {value: value for value in rest}
        if 0 in share:
            notes.append(f'0 is a class: {names[0]} ({share[0]:.1%} of the pixels; --zero-label void makes it void)')
        return _data(root, kind, names, mapping, found, notes, convert)
    if zero == 'void' or rest[0] == 1:
        if len(rest) < (most + 1) / 2:
            chosen = [value for value in rest if value]
            mapping |= {value: i for i, value in enumerate(chosen)} | ({0: VOID} if 0 in rest else {})
            notes.append(f'{len(chosen)} values to {most}: numbered without gaps')
            return _data(root, kind, [f'class_{v}' for v in chosen], mapping, found, notes, True)
        notes.append('0 is void: --zero-label says so' if zero == 'void' else 'labels begin at 1: 0 is void')
        names = [f'class_{i}' for i in range(1, most + 1)]
        return _data(root, kind, names, _reduced(rest, mapping), found, notes, convert, reduce=True)
    notes.append(f'no file of names (classes.txt): {count(len(rest), "class", "classes")} counted')
    if 0 in rest:
        notes.append(f'0 is a class, called background ({share[0]:.1%} of the pixels; --zero-label void makes it void)')
    names = ['background' if value == 0 else f'class_{value}' for value in rest]
    if rest != list(range(len(rest))):
        notes.append(f'values {listed(rest, 8)}: numbered without gaps')
        convert = True
    mapping |= {value: i for i, value in enumerate(rest)}
    return _data(root, kind, names, mapping, found, notes, convert)


def _reduced(values: list[int], mapping: dict) -> dict:
    return mapping | {value: value - 1 if value else VOID for value in values}


def _by_colour(
    root: Path, names: list[str], colours: list | None, found: Found, zero: str | None, notes: list[str]
) -> SegmentationData:
    """What colours mean."""
    values = sorted(found.pixels)
    black, white = (0, 0, 0), (255, 255, 255)
    if colours:
        mapping: dict[Value, int] = {colour: i for i, colour in enumerate(colours)}
        void = {colours[i] for i, name in enumerate(names) if name.lower() in VOID_NAMES and zero != 'class'}
        void |= {black} if zero == 'void' else set()
        kept = [(name, colour) for name, colour in zip(names, colours) if colour not in void]
        names, colours = [name for name, _ in kept], [colour for _, colour in kept]
        mapping = {colour: i for i, colour in enumerate(colours)} | {colour: VOID for colour in void}
        for value in values:
            if value not in mapping:
                if value not in (black, white):
                    raise UserError(
                        f'--data {root}: {found.first[value]} has the colour {value} ({found.pixels[value]} pixels), '
                        'which the list of classes lacks; add it, or save the labels without smoothing'
                    )
                mapping[value] = VOID
                notes.append(f'the colour {value} is not in the list of classes: void')
        return _data(root, 'colour', names, mapping, found, notes, True, palette=colours)
    if 'P' in found.modes:
        notes.append('the files have different palettes: it is their colours that are read, not their numbers')
    if zero == 'void' and black in values:
        values.remove(black)
        notes.append('black is void: --zero-label says so')
    elif black in values:
        notes.append('black is a class, called background (--zero-label void makes it void)')
    mapping = {value: i for i, value in enumerate(values)}
    if black not in mapping and black in found.pixels:
        mapping[black] = VOID
    own = ['background' if value == black else 'colour_{:02x}{:02x}{:02x}'.format(*value) for value in values]
    if names and len(names) == len(values):
        raise UserError(
            f'--data {root}: the labels are colours, and the names come without; write `name r g b` in each line, the '
            f'colours are {listed(values)}'
        )
    notes.append(f'no list of colours (class_dict.csv): {count(len(values), "colour")} counted')
    return _data(root, 'colour', own, mapping, found, notes, True, palette=values)


def _data(
    root: Path,
    kind: str,
    names: list[str],
    mapping: dict,
    found: Found,
    notes: list[str],
    convert: bool = False,
    reduce: bool = False,
    palette: list | None = None,
) -> SegmentationData:
    """The description; the colours are those of the files where they have any."""
    if palette is None:
        palette = distinct_palette(len(names))
        own = {
            label: found.palette[value]
            for value, label in mapping.items()
            if value in found.palette and label < len(names)
        }
        if len(set(own.values())) == len(own):  # else they would not tell the classes apart
            palette = [own.get(i, colour) for i, colour in enumerate(palette)]
    if reduce and convert:  # written anew in any case
        reduce = False
    return SegmentationData(
        root,
        kind,
        names,
        [(int(r), int(g), int(b)) for r, g, b in palette],
        {},
        mapping,
        dict(found.pixels),
        dict(found.images),
        [],
        reduce,
        convert,
        notes,
    )
