"""YOLO's layout: a text file an image, ``class x y width height`` or ``class x1 y1 …`` in shares of its sides."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from .description import DetectionData, Split
from .files import count, is_image, listed, read_head, read_names, split_of_path

NAME_FILES = ('classes.txt', 'obj.names', 'class_names.txt', 'names.txt', 'labels.txt', 'predefined_classes.txt')
ROUNDING = 0.01  # by which a share may be beyond 0 to 1


def find_settings(files: list[Path]) -> Path | None:
    """The YAML file that names the classes, where there is one."""
    for path in files:
        if path.suffix.lower() in ('.yaml', '.yml'):
            try:
                content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue
            if isinstance(content, dict) and 'names' in content:
                return path
    return None


def label_file(image: Path) -> Path:
    """Where the labels of an image are: below ``labels`` for one below ``images``, else beside it."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == 'images':
            return Path(*parts[:i], 'labels', *parts[i + 1 :]).with_suffix('.txt')
    return image.with_suffix('.txt')


def is_yolo(files: list[Path]) -> bool:
    """Whether any image has a file of labels."""
    there = set(files)
    return find_settings(files) is not None or any(is_image(path) and label_file(path) in there for path in files)


def read_yolo(root: Path, files: list[Path], notes: list[str]) -> DetectionData:
    """The data of YOLO's files.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        notes (list[str]): Gets what the user is to know.

    Raises:
        UserError: If a line of labels is wrong, with file and line.
    """
    path = find_settings(files)
    settings = yaml.safe_load(path.read_text(encoding='utf-8-sig')) if path else {}
    if settings.get('kpt_shape'):
        raise UserError(f'{path}: `kpt_shape` says that the labels are key points, which no model here learns')
    names = _names(path, settings, root, files, notes)
    splits = {}
    counts: Counter[str] = Counter()
    labels = set()
    for name, images in _splits(path, settings, root, files, notes).items():
        split = Split(root, [], [])
        without = 0
        for image in images:
            head = read_head(image)
            record = dict(id=len(split.images) + 1, file_name=_relative(image, root))
            split.images.append(record)
            if head is None:
                continue  # told later
            record['width'], record['height'] = head.shown
            file = label_file(image)
            if not file.is_file():
                without += 1
                continue
            for number, line in enumerate(file.read_text(encoding='utf-8-sig').splitlines(), 1):
                if not line.strip():
                    continue
                label, one = _read_line(line, head.shown, f'{file}:{number}', counts)
                if names and label >= len(names):
                    raise UserError(f'{file}:{number}: class {label}, and there are {len(names)} names; add its name')
                labels.add(label)
                split.annotations.append(
                    dict(one, id=len(split.annotations) + 1, image_id=record['id'], category_id=label + 1, iscrowd=0)
                )
        if without:
            notes.append(
                f'{name}: {count(without, "image")} without a file of labels; taken for images without objects'
            )
        splits[name] = split
    if not names:
        names = [f'class_{label}' for label in range(max(labels, default=-1) + 1)]
        notes.append(f'no names of classes (data.yaml or classes.txt): called {listed(names)}')
    if counts['beyond']:
        notes.append(f'{count(counts["beyond"], "outline")} beyond the border')
    return DetectionData(root, 'YOLO', names, splits, notes)


def _relative(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image.resolve())


def _read_line(line: str, size: tuple[int, int], place: str, counts: Counter) -> tuple[int, dict]:
    """The label, and box, area and outline in pixels."""
    try:
        label, *values = (float(word) for word in line.split())
    except ValueError:
        raise UserError(f'{place}: {line.strip()!r} is not `class x y width height` in numbers') from None
    if label != int(label) or label < 0:
        raise UserError(f'{place}: class {label:g} is not a whole number from 0')
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise UserError(
            f'{place}: {len(values)} numbers after the class; 4 make a box, and 6, 8, … the corners of an outline'
        )
    if max(map(abs, values)) > 2:
        raise UserError(
            f'{place}: {max(values):g} is no share of the side, 0 to 1; are these pixels? Divide by the size'
        )
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return int(label), dict(bbox=[round(value, 3) for value in box], area=round(box[2] * box[3], 3))
    xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
    if min(values) < -ROUNDING or max(values) > 1 + ROUNDING:
        counts['beyond'] += 1
    polygon = [round(value, 3) for point in zip(xs, ys) for value in point]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    return int(label), dict(bbox=[round(value, 3) for value in box], area=round(area, 3), segmentation=[polygon])


def _names(path: Path | None, settings: dict, root: Path, files: list[Path], notes: list[str]) -> list[str]:
    """Names of the classes, from the YAML or a text file; empty where there is neither."""
    names: Any = settings.get('names')
    if isinstance(names, dict):
        try:
            numbers = {int(key): name for key, name in names.items()}
        except ValueError:
            raise UserError(f'{path}: `names` has keys that are no numbers') from None
        return [str(numbers.get(i, f'class_{i}')) for i in range(max(numbers, default=-1) + 1)]
    if names:
        return [str(name) for name in names]
    for file in files:
        if file.name.lower() in NAME_FILES:
            notes.append(f'names of the classes from {file.relative_to(root)}')
            return read_names(file)
    return []


def _splits(
    path: Path | None, settings: dict, root: Path, files: list[Path], notes: list[str]
) -> dict[str, list[Path]]:
    """Images by split: as the YAML says, else by the names of folders."""
    splits: dict[str, list[Path]] = {}
    if path:
        base = Path(path.parent, str(settings.get('path') or ''))
        for name in ('train', 'val', 'test'):
            places = settings.get(name) or (settings.get('valid') if name == 'val' else None)
            places = places if isinstance(places, list) else [places] if places else []
            images = [image for place in places for image in _images_at(str(place), base, path.parent, root)]
            if places and not images:
                notes.append(f'`{name}: {listed(places)}` of {path.name} leads to no image; left out')
            elif images:
                splits[name] = list(dict.fromkeys(images))
        seen: dict[Path, str] = {}
        for name in list(splits):
            twice = [image for image in splits[name] if image in seen]
            if twice:
                text = f'{name}: {count(len(twice), "image")} also in {seen[twice[0]]} ({path.name})'
                notes.append(f'{text}: what is measured on them says nothing')
            seen |= {image: name for image in splits[name]}
    if splits:
        return splits
    there = set(files)
    images = [image for image in files if is_image(image)]
    if not any(label_file(image) in there for image in images):
        raise UserError(f'--data {root}: no image has a file of labels; put NAME.txt beside it or below `labels`')
    for image in images:
        splits.setdefault(split_of_path(image, root) or 'all', []).append(image)
    if 'all' in splits and len(splits) > 1:
        notes.append(f'{count(len(splits["all"]), "image")} in no folder of a split; left out')
        del splits['all']
    return splits


def _images_at(place: str, base: Path, beside: Path, root: Path) -> list[Path]:
    """The images of a folder or of a text file that lists them; Roboflow's ``../train/images`` is beside the YAML."""
    plain = place.removeprefix('../')
    for candidate in (base / place, beside / place, beside / plain, root / plain):
        if candidate.is_dir():
            return sorted(path for path in candidate.rglob('*') if is_image(path))
        if candidate.is_file() and candidate.suffix == '.txt':
            found = [Path(candidate.parent, line.removeprefix('./')) for line in read_names(candidate)]
            return [image for image in found if is_image(image) and image.is_file()]
    return []
