"""Names and colours of the classes of a segmentation, from a file among the data."""

import csv
import json
import re
from pathlib import Path

from ..errors import UserError
from .files import count, listed, read_names

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
