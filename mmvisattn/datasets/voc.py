"""Pascal VOC's layout: XML files in ``Annotations``, images in ``JPEGImages``, splits in ``ImageSets/Main``."""

import os
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import UserError
from .description import DetectionData, Split
from .files import count, is_image, listed, read_head, read_names, split_of_path


def find_annotations(files: list[Path]) -> list[Path]:
    """The XML files that hold an annotation of VOC; judged by the first."""
    xml = [path for path in files if path.suffix.lower() == '.xml']
    for path in xml[:1]:
        try:
            return xml if ET.parse(path).getroot().tag == 'annotation' else []
        except ET.ParseError:
            return xml  # told when it is read
    return []


def read_voc(root: Path, files: list[Path], xml: list[Path], notes: list[str]) -> DetectionData:
    """The data of VOC's files.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        xml (list[Path]): What :func:`find_annotations` found.
        notes (list[str]): Gets what the user is to know.

    Raises:
        UserError: If a file is broken, or none has its image.
    """
    images: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if is_image(path):
            images[path.stem].append(path)
    counts: Counter[str] = Counter()
    records: list[dict] = []
    objects: list[list[tuple]] = []
    for path in xml:
        record, boxes = _read(path, counts)
        named = images.get(path.stem) or images.get(Path(record.pop('name')).stem)
        record.pop('name', None)
        if not named:
            counts['without an image'] += 1
            continue
        # Of several of the name, as in folders of splits or years, the one that lies nearest.
        image = max(named, key=lambda image: len(os.path.commonpath([image, path])))
        if not record:
            head = read_head(image)
            record = dict(zip(('width', 'height'), head.shown)) if head else {}
        record.update(id=len(records) + 1, file_name=image.relative_to(root).as_posix(), xml=path)
        records.append(record)
        objects.append(boxes)
    if not records:
        raise UserError(f'--data {root}: {len(xml)} XML files, and none has an image of its name; put the images there')
    # The toolbox takes 1 off, as VOC counts from 1; where a 0 stands, somebody has counted from 0.
    first = min((min(box[1:3]) for boxes in objects for box in boxes), default=1)
    shift = 1 if first >= 1 else 0
    if not shift:
        notes.append('coordinates that begin at 0, not at 1 as in VOC: taken as they are')
    classes = _class_names(root, files, {box[0] for boxes in objects for box in boxes}, notes)
    if counts['difficult']:
        notes.append(f'{count(counts["difficult"], "object")} marked difficult: regions to ignore, as the toolbox does')
    if counts['without an image']:
        notes.append(f'{count(counts["without an image"], "XML file")} without an image of the name; left out')
    annotations = {}
    for record, boxes in zip(records, objects):
        annotations[record['id']] = [
            dict(
                image_id=record['id'],
                category_id=classes.index(name) + 1,
                bbox=[x1 - shift, y1 - shift, x2 - x1, y2 - y1],
                area=max(x2 - x1, 0) * max(y2 - y1, 0),
                iscrowd=difficult,
            )
            for name, x1, y1, x2, y2, difficult in boxes
        ]
    splits = {}
    for name, chosen in _splits(root, files, records, notes).items():
        own = [one for record in chosen for one in annotations[record['id']]]
        splits[name] = Split(root, chosen, [dict(one, id=number) for number, one in enumerate(own, 1)])
    for record in records:
        del record['xml']
    return DetectionData(root, 'Pascal VOC', classes, splits, notes)


def _read(path: Path, counts: Counter) -> tuple[dict, list[tuple]]:
    """Name and, where given, size of the image, and class, corners and difficulty of each object."""
    try:
        root = ET.parse(path).getroot()
        record: dict = {'name': root.findtext('filename') or path.stem}
        size = root.find('size')
        if size is not None and int(size.findtext('width') or 0) > 0:
            record |= {side: int(size.findtext(side) or 0) for side in ('width', 'height')}
        boxes = []
        for item in root.findall('object'):
            box = item.find('bndbox')
            if box is None:
                raise ValueError('an object without bndbox')
            # As mmdet's XMLDataset reads them.
            corners = [int(float(box.findtext(side) or 'nan')) for side in ('xmin', 'ymin', 'xmax', 'ymax')]
            difficult = int(item.findtext('difficult') or 0)
            counts['difficult'] += difficult
            boxes.append(((item.findtext('name') or '').strip(), *corners, difficult))
    except (ET.ParseError, ValueError) as error:
        raise UserError(f'{path} cannot be read as an annotation of VOC: {error}; mend it, or take it away') from error
    if any(not box[0] for box in boxes):
        raise UserError(f'{path}: an object without a name; give it one')
    return record, boxes


def _class_names(root: Path, files: list[Path], used: set[str], notes: list[str]) -> list[str]:
    """Names in the order of a text file where there is one, else in that of the alphabet, as VOC's own are."""
    for path in files:
        if path.name.lower() in ('labels.txt', 'classes.txt', 'label_list.txt', 'class_names.txt'):
            names = read_names(path)
            if missing := sorted(used - set(names)):
                raise UserError(f'{path} lacks the names {listed(missing)} that objects have; add them')
            notes.append(f'classes in the order of {path.relative_to(root)}')
            return names
    notes.append('classes in the order of the alphabet')
    return sorted(used)


def _splits(root: Path, files: list[Path], records: list[dict], notes: list[str]) -> dict[str, list[dict]]:
    """The images of each split: by ``ImageSets/Main``, else by the folders' names, else all in one."""
    by_stem: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        by_stem[record['xml'].stem].append(record)
    lists: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.suffix == '.txt' and 'ImageSets' in path.parts and path.parent.name != 'Segmentation':
            lists[path.stem.lower()].append(path)
    splits: dict[str, list[dict]] = {}
    for name in ('train', 'val', 'test', 'trainval'):
        if name not in lists or name == 'trainval' and 'train' in splits:
            continue
        found, lost = {}, []
        for path in lists[name]:  # one for each year
            for stem in (line.split()[0] for line in read_names(path)):
                if stem in by_stem:
                    record = max(by_stem[stem], key=lambda record: len(os.path.commonpath([record['xml'], path])))
                    found[record['id']] = dict(record)
                else:
                    lost.append(stem)
        if lost:
            notes.append(f'{name}: {count(len(lost), "name")} of {name}.txt without XML ({listed(lost, 3)})')
        if found:
            splits['train' if name == 'trainval' else name] = list(found.values())
    if not splits:
        for record in records:
            name = split_of_path(Path(root, record['file_name']), root) or split_of_path(record['xml'], root) or 'all'
            splits.setdefault(name, []).append(dict(record))
        if 'all' in splits and len(splits) > 1:
            notes.append(f'{count(len(splits["all"]), "image")} in no folder of a split; left out')
            del splits['all']
    else:
        chosen = {record['id'] for split in splits.values() for record in split}
        if rest := len(records) - len(chosen):
            notes.append(f'{count(rest, "image")} in none of the lists of ImageSets; left out')
    for split in splits.values():
        for record in split:
            record.pop('xml')
    return splits
