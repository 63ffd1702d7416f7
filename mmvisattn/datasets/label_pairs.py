"""Which picture a file of labels belongs to, and which split both are of."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import UserError
from .files import count, is_image, listed, orientation, read_head, read_names, sample, split_of, split_of_path

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


def check_sizes(pairs: list[tuple[Path, Path]], notes: list[str]) -> tuple[bool, list[tuple[int, int]]]:
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
