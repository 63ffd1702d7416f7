"""COCO's layout: JSON files of images, annotations and categories, whatever they and the folders are called."""

import json
from collections import defaultdict
from pathlib import Path

from ..errors import UserError
from .description import DetectionData, Split
from .files import count, is_image, listed, split_of, split_of_path

KEYS = {'images', 'annotations', 'categories'}


def find_files(root: Path, files: list[Path], notes: list[str]) -> dict[Path, dict]:
    """The files of annotations that tell of boxes or outlines, with their content.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        notes (list[str]): Gets a note on each JSON file that is left out.
    """
    found = {}
    for path in files:
        if path.suffix.lower() != '.json':
            continue
        name = path.relative_to(root)
        try:
            content = json.loads(path.read_text(encoding='utf-8-sig'))
        except ValueError as error:
            notes.append(f'{name} is no JSON ({error}); left out')
            continue
        if not isinstance(content, dict) or 'images' not in content:
            continue
        annotations = content.get('annotations')
        if not annotations and not content.get('categories'):
            continue
        if not annotations and split_of_path(path, root) == 'test':
            notes.append(f'{name} has no annotations; left out')
        elif missing := KEYS - set(content):
            notes.append(f'{name} has no {listed(sorted(missing))}; left out')
        elif annotations and not any('bbox' in one or 'segmentation' in one for one in annotations[:100]):
            notes.append(f'{name} tells of no boxes; left out')
        else:
            found[path] = content
    return found


def read_coco(root: Path, files: list[Path], found: dict[Path, dict], notes: list[str]) -> DetectionData:
    """The data of COCO's files.

    Args:
        root (Path): The user's folder.
        files (list[Path]): All files in it.
        found (dict[Path, dict]): What :func:`find_files` found.
        notes (list[str]): Gets what the user is to know.

    Raises:
        UserError: If two files are for one split, or categories contradict one another.
    """
    by_split: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        by_split[split_of_path(path, root) or 'all'].append(path)
    if 'all' in by_split and len(by_split) > 1:
        names = listed(path.relative_to(root) for path in by_split.pop('all'))
        notes.append(f'{names}: neither train, val nor test in the name; left out')
    classes: list[str] = []
    splits, order = {}, {}
    folders = sorted({path.parent for path in files if is_image(path)})
    for name in sorted(by_split, key=['train', 'all', 'val', 'test'].index):
        path = _choose(name, by_split[name], root, notes)
        content = found[path]
        images, annotations = content['images'], content['annotations']
        own = _categories(content['categories'], path, notes)
        if not classes:
            classes = list(dict.fromkeys(own.values()))
            if list(own) != list(range(1, len(own) + 1)):
                notes.append(f'category ids {listed(own)}: labels 0 to {len(classes) - 1} in this order')
        elif extra := [c for c in dict.fromkeys(own.values()) if c not in classes]:
            notes.append(
                f'{count(len(extra), "class", "classes")} that training does not know: {listed(extra)} ({name})'
            )
            classes += extra
        folder, renamed = _find_images(path, images, root, folders, files)
        labels = {key: classes.index(category) + 1 for key, category in own.items()}
        unknown = [one for one in annotations if one.get('category_id') not in labels]
        if unknown:
            ids = sorted({str(one.get('category_id')) for one in unknown})
            notes.append(
                f'{name}: {count(len(unknown), "object")} of categories that are not listed (ids {listed(ids)}); '
                'left out, as the toolbox does'
            )
        same = not renamed and not unknown and not _has_mark(path)
        for one in annotations:
            if one.get('category_id') in labels:
                one['category_id'] = labels[one['category_id']]
        if unknown:
            left = {id(one) for one in unknown}
            annotations = [one for one in annotations if id(one) not in left]
        splits[name] = Split(folder, images, annotations, source=path if same else None)
        order[name] = list(own.values())
        notes.append(
            f'{name}: {path.relative_to(root)} with {count(len(images), "image")}, found in '
            f'{folder.relative_to(root) if folder != root else "the folder itself"}'
        )
    for name, split in splits.items():
        if order[name] != classes:  # the toolbox numbers by the order of the file
            split.source = None
    return DetectionData(root, 'COCO', classes, splits, notes)


def _choose(split: str, paths: list[Path], root: Path, notes: list[str]) -> Path:
    """The one file of a split."""
    if len(paths) > 1:
        instances = [path for path in paths if 'instances' in path.stem.lower()]
        if len(instances) == 1:
            others = listed(path.relative_to(root) for path in paths if path not in instances)
            notes.append(f'{others}: beside {instances[0].relative_to(root)}; left out')
            return instances[0]
        names = listed(path.relative_to(root) for path in paths)
        where = 'without a split in its name' if split == 'all' else f'for {split}'
        raise UserError(f'--data {root}: {len(paths)} files {where}: {names}; leave one in the folder, or merge them')
    return paths[0]


def _categories(categories: list[dict], path: Path, notes: list[str]) -> dict:
    """Names by id; two ids of one name are one class."""
    own: dict = {}
    for category in categories:
        if 'id' not in category or not str(category.get('name', '')).strip():
            raise UserError(f'{path}: category {category} lacks an id or a name; add it')
        if category['id'] in own and own[category['id']] != category['name']:
            raise UserError(f'{path}: category id {category["id"]} has two names; give each category an id of its own')
        own[category['id']] = str(category['name'])
    if not own:
        raise UserError(f'{path}: no categories; list them under "categories"')
    names = list(own.values())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        notes.append(f'{path.name}: several ids of the name {listed(twice)}; one class each')
    return own


def _has_mark(path: Path) -> bool:
    """Whether it begins with a byte order mark, which pycocotools cannot read."""
    with path.open('rb') as file:
        return file.read(3) == b'\xef\xbb\xbf'


def _find_images(
    path: Path, images: list[dict], root: Path, folders: list[Path], files: list[Path]
) -> tuple[Path, bool]:
    """The folder that the names of the images are relative to, and whether the names were changed for it."""
    if not images:
        raise UserError(f'{path}: no images')
    if any('file_name' not in image or 'id' not in image for image in images):
        raise UserError(f'{path}: an image without id or file_name; add it')
    probe = images[:: max(1, len(images) // 50)]

    def hits(folder: Path) -> int:
        return sum(Path(folder, image['file_name']).is_file() for image in probe)

    split = split_of_path(path, root)
    candidates = {*folders, *(parent for folder in folders for parent in folder.parents if parent.is_relative_to(root))}
    # Where several hold files of these names, the one of the same split, then the nearest.
    ordered = sorted(candidates, key=lambda f: (split is None or split_of(f.name) != split, f != path.parent, str(f)))
    best = max(ordered, key=hits, default=root)
    if hits(best):
        return best, False
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if is_image(file):
            by_name[file.name].append(file)
    renamed = False
    for image in images:
        places = by_name.get(Path(image['file_name'].replace('\\', '/')).name, [])
        if len(places) > 1:
            places = [place for place in places if split_of_path(place, root) == split]
        if len(places) == 1:
            image['file_name'] = places[0].relative_to(root).as_posix()
            renamed = True
    if not renamed:
        raise UserError(
            f'{path}: its images, such as {images[0]["file_name"]!r}, are nowhere below {root}; put them there'
        )
    return root, True
