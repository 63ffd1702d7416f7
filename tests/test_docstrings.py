"""One dialect of docstrings: Google's sections, with a type for each argument and for what comes back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT) for room in ('mmvisattn', 'tools') for path in (ROOT / room).rglob('*.py'))
SECTION = re.compile(r'^(Args|Returns):\n((?:(?: {4}.*)?\n)+)', re.MULTILINE)


def sections(path: Path) -> Iterator[tuple[str, str, str]]:
    """Owner, name and first lines of the entries of each section."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8'))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for name, text in SECTION.findall(f'{ast.get_docstring(node) or ""}\n'):
                lines = re.findall(r'^ {4}(\S.*)$', text, re.MULTILINE)
                yield from ((node.name, name, line) for line in (lines if name == 'Args' else lines[:1]))


@pytest.mark.parametrize('path', FILES, ids=str)
def test_arguments_and_returns_are_typed(path):
    for owner, section, line in sections(path):
        pattern = r'\*{0,2}\w+ \(.+?\): \S' if section == 'Args' else r'[\w.\[\], |]+: \S'
        assert re.match(pattern, line), f'{owner}: {section}: {line}'


def test_there_is_something_to_read():
    told = [section for path in FILES for _, section, _ in sections(path)]
    assert told.count('Args') > 300 and told.count('Returns') > 60
