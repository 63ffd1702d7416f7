"""Images and labels for each pixel in parallel folders: what the values mean, by the names of the classes."""

from pathlib import Path

from ..errors import UserError
from .class_names import read_classes
from .description import SegmentationData, distinct_palette
from .files import count, listed
from .label_pairs import check_sizes, find_pairs
from .label_values import VOID, Found, check_smeared, survey

VOID_NAMES = {'void', 'ignore', 'ignored', 'unlabeled', 'unlabelled', 'unknown', 'dontcare', 'none', 'other (void)'}


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
    ignore_orientation, sizes = check_sizes(everything, notes)
    names, colours = read_classes(root, files, notes)
    by_colour, found = survey([label for _, label in everything], bool(colours))
    check_smeared(root, found, names, by_colour)
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
        mapping: dict[int | tuple[int, int, int], int] = {colour: i for i, colour in enumerate(colours)}
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
