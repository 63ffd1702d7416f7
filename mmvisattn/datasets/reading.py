"""Find out what a folder holds, read it, and leave nothing open: splits, order of the classes, quirks."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, nearest
from . import coco, voc, yolo
from .description import DetectionData, SegmentationData, Split
from .files import count, is_image, listed, make_split, orientation, walk
from .mend import mend
from .segmentation import read_labels

VAL_SHARE = 0.2  # of the images, where the user has made no split


def read_detection(
    folder: str | Path, with_masks: bool = False, val_share: float = VAL_SHARE, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read boxes and outlines in the layout of COCO, Pascal VOC or YOLO.

    Args:
        folder (str | Path): The user's folder; nothing is written into it.
        with_masks (bool): Whether the model learns outlines. Defaults to False.
        val_share (float): Share of the images for validation where the folder has no split. Defaults to 0.2.
        classes (Sequence[str], optional): Names that a trained model knows, in the order of its labels. Defaults to
            those of the folder.

    Raises:
        UserError: If the folder holds none of these, or what it holds cannot be read.
    """
    root = Path(folder).resolve()
    files = walk(root)
    notes: list[str] = []
    found = coco.find_files(root, files, notes)
    xml = voc.find_annotations(files)
    if found:
        data = coco.read_coco(root, files, found, notes)
    elif xml:
        data = voc.read_voc(root, files, xml, notes)
    elif yolo.is_yolo(files):
        data = yolo.read_yolo(root, files, notes)
    else:
        hint = '; '.join(notes) or f'files by suffix: {_suffixes(files)}'
        raise UserError(
            f'--data {folder}: no annotations of objects (COCO: a JSON with images, annotations and categories; Pascal '
            f'VOC: Annotations/*.xml; YOLO: labels/*.txt) were found; {hint}'
        )
    if found and xml:
        notes.append(f'{count(len(xml), "XML file")} beside the JSON of COCO; not read')
    turned = []
    objects = [one for split in data.splits.values() for one in split.annotations]
    data.has_masks = any(one.get('segmentation') and not one.get('iscrowd') for one in objects)
    for name, split in data.splits.items():
        told, of_split = mend(split, name, with_masks)
        notes += told
        turned += of_split
    data.ignore_orientation = orientation(turned, notes)
    if classes:
        _take_classes(data, list(classes))
    _settle_splits(data, val_share)
    if not data.classes:
        raise UserError(f'--data {folder}: no class and no object; the annotations are empty')
    used = {one['category_id'] for split in data.splits.values() for one in split.annotations}
    unused = [name for number, name in enumerate(data.classes, 1) if number not in used]
    if unused and not classes:
        text = f'{count(len(unused), "class", "classes")} of {len(data.classes)} without an object: {listed(unused)}'
        notes.append(f'{text}; kept, as the toolbox does')
    return data


def read_segmentation(
    folder: str | Path,
    zero_label: str | None = None,
    val_share: float = VAL_SHARE,
    classes: Sequence[str] | None = None,
) -> SegmentationData:
    """Read images and labels for each pixel in parallel folders.

    Args:
        folder (str | Path): The user's folder; nothing is written into it.
        zero_label (str, optional): What 0, or black, is: ``class`` or ``void``. Defaults to what the names and the
            values say.
        val_share (float): Share of the images for validation where the folder has no split. Defaults to 0.2.
        classes (Sequence[str], optional): Names that a trained model knows, in the order of its labels. Defaults to
            those of the folder.

    Raises:
        UserError: If the folder holds none, or what it holds cannot be read.
    """
    root = Path(folder).resolve()
    data = read_labels(root, walk(root), zero_label)
    if classes:
        _take_labels(data, list(classes))
    if missing := {'train', 'val'} - set(data.pairs):
        if 'all' in data.pairs or 'train' in data.pairs:
            source = 'all' if 'all' in data.pairs else 'train'
            pairs = data.pairs.pop(source)
            chosen = make_split([str(image) for image, _ in pairs], val_share)
            data.pairs['train'] = [pair for pair in pairs if str(pair[0]) not in chosen]
            data.pairs['val'] = [pair for pair in pairs if str(pair[0]) in chosen]
            data.notes.append(_split_note(source, len(data.pairs['train']), len(chosen), val_share))
        elif not classes:
            raise UserError(f'--data {folder}: no split for {listed(sorted(missing))}; there is {listed(data.pairs)}')
    return data


def _split_note(source: str, train: int, val: int, share: float) -> str:
    what = 'no split in the folder' if source == 'all' else 'no split for validation'
    return f'{what}: {train} images to train on, {val} to validate on (seeded, by image; --val-share {share:g})'


def _settle_splits(data: DetectionData, share: float) -> None:
    """Make what is missing of train and val."""
    if 'test' in data.splits and not data.splits['test'].annotations:
        del data.splits['test']
        data.notes.append('test: no annotations; left out')
    source = 'all' if 'all' in data.splits else 'train' if 'val' not in data.splits and 'train' in data.splits else None
    if source is None:
        return
    whole = data.splits.pop(source)
    chosen = make_split([image['file_name'] for image in whole.images], share)
    parts = {}
    for name, inside in (('train', False), ('val', True)):
        images = [image for image in whole.images if (image['file_name'] in chosen) == inside]
        ids = {image['id'] for image in images}
        parts[name] = Split(whole.image_root, images, [one for one in whole.annotations if one['image_id'] in ids])
    data.splits = {**parts, **data.splits}
    data.notes.append(_split_note(source, len(parts['train'].images), len(parts['val'].images), share))


def _take_classes(data: DetectionData, classes: list[str]) -> None:
    """Number the classes as a trained model does; objects of others are left out."""
    if classes == data.classes:
        return
    labels = _common(data.classes, classes, data)
    for name, split in data.splits.items():
        known = [one for one in split.annotations if data.classes[one['category_id'] - 1] in labels]
        if lost := len(split.annotations) - len(known):
            data.notes.append(f'{name}: {count(lost, "object")} of classes that the model does not know; left out')
        for one in known:
            one['category_id'] = labels[data.classes[one['category_id'] - 1]] + 1
        split.annotations, split.source = known, None
    data.classes = classes


def _take_labels(data: SegmentationData, classes: list[str]) -> None:
    """As :func:`_take_classes`, for labels of pixels; those of other classes become void."""
    if classes == data.classes:
        return
    labels = _common(data.classes, classes, data)
    own = dict(enumerate(data.classes))
    data.mapping = {value: labels.get(own.get(label, ''), 255) for value, label in data.mapping.items()}
    colours = dict(zip(data.classes, data.palette))
    data.palette = [colours.get(name, (128, 128, 128)) for name in classes]
    data.classes, data.convert, data.reduce_zero_label = classes, True, False


def _common(own: list[str], classes: list[str], data: DetectionData | SegmentationData) -> dict[str, int]:
    """Labels of the model by the names that the data have, too.

    Raises:
        UserError: If there is no such name.
    """
    labels = {name: classes.index(name) for name in own if name in classes}
    if not labels:
        raise UserError(
            f'--data {data.root}: its classes ({listed(own)}) are none of those that the checkpoint knows '
            f'({listed(classes)}){nearest(own[0] if own else "", classes)}; give the data it was trained for, or rename'
        )
    if others := [name for name in own if name not in labels]:
        data.notes.append(f'the model does not know {listed(others)}')
    return labels


def _suffixes(files: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or '(none)' for path in files)
    images = sum(is_image(path) for path in files)
    return ', '.join(f'{number} {suffix}' for suffix, number in counts.most_common(5)) + f' ({images} images)'
