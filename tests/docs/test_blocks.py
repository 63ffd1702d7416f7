"""Every shell and Python block of every page is run, by a test that is named, or it is said why not.

The comment before a block says which: ``<!-- run -->`` (here), ``<!-- run by: FILE::TEST -->`` or
``<!-- not run: REASON -->``.
Commands of those that are not run here are still parsed: their scripts, configs and flags have to exist.
"""

import argparse
import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mmvisattn  # noqa: F401

import pytest

from tests.tools.utils import ROOT, load_tool

PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]
PAGES += sorted((ROOT / 'docs').rglob('*.md')) + sorted((ROOT / 'configs').glob('*/README.md'))
# The comment may stand a line before; blocks in lists are indented.
BLOCK = re.compile(r'(?:<!-- ([^\n]*?) -->\n+)?^( *)```(bash|sh|shell|console|python|py)\n(.*?)^ *```', re.M | re.S)
MAKE_TARGETS = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M))
ENVIRONMENTS = re.search(r'^ENVIRONMENTS := (.*)$', (ROOT / 'Makefile').read_text(), re.M)[1].split()
MAKE_TARGETS |= {f'test-{name}' for name in ENVIRONMENTS}

# Of pages where all blocks are of a kind.
OF_PAGES = {
    'docs/studies.md': 'not run: trainings of hours; tests/tools/test_mini_study.py runs the tool on small scenes',
}


class Block(NamedTuple):
    page: Path
    line: int
    marker: str
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'


def read(page: Path) -> list[Block]:
    text = page.read_text(encoding='utf-8')
    found, default = [], OF_PAGES.get(str(page.relative_to(ROOT)), '')
    for match in BLOCK.finditer(text):
        marker, indent, language, body = match.groups()
        line = text.count('\n', 0, match.end()) - body.count('\n')
        language = 'python' if language.startswith('py') else 'bash'
        found.append(Block(page, line, marker or default, language, body.replace(f'\n{indent}', '\n')))
    return found


BLOCKS = [block for page in PAGES for block in read(page)]
SHELL = [block for block in BLOCKS if block.language == 'bash']
RUN = [block for block in BLOCKS if block.marker == 'run']
PYTHON_PAGES = sorted({block.page for block in RUN if block.language == 'python'})


def test_the_blocks_are_seen():
    fences = sum(len(re.findall(r'^ *```(?:bash|python)$', page.read_text(), re.M)) for page in PAGES)
    assert len(BLOCKS) == fences > 20
    assert len(PYTHON_PAGES) >= 3


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_every_block_says_who_runs_it(block):
    kind, _, rest = block.marker.partition(':')
    assert kind in ('run', 'run by', 'not run'), f'{block} has no comment before it that says who runs it'
    if kind == 'run by':
        file, _, name = rest.strip().partition('::')
        assert f'def {name}(' in (ROOT / file).read_text()
    if kind == 'not run':
        assert len(rest.split()) > 2
        # A test that does the like is named by its file.
        assert all((ROOT / name).exists() for name in re.findall(r'tests/[\w/]+(?:\.py)?', rest)), rest


@pytest.mark.parametrize('page', PYTHON_PAGES, ids=lambda page: page.name)
def test_python_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {'__name__': '__main__'}
    for block in RUN:
        if block.page == page and block.language == 'python':
            # The lines of a traceback are those of the page.
            exec(compile('\n' * (block.line - 1) + block.text, str(page), 'exec'), namespace)


@pytest.mark.parametrize('block', [block for block in RUN if block.language == 'bash'], ids=str)
def test_shell_blocks(block, tmp_path):
    for name in ('configs', 'tools', 'mmvisattn', 'requirements'):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    environment = {**os.environ, 'PATH': path, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        ['bash', '-euc', block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Parsed(Exception):
    pass


def commands(block: Block) -> list[list[str]]:
    joined = block.text.replace('\\\n', ' ')
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith(('#', '    #'))]
    words = [shlex.split(line.removeprefix('$ '), comments=True) for line in lines]
    return [[word for word in line if not re.match(r'[A-Z_]+=', word)] or line for line in words if line]


TOOL_COMMANDS = {
    (tuple(words), str(block)): None
    for block in SHELL
    for words in commands(block)
    if words[0] == 'python' and len(words) > 1 and words[1].startswith('tools/')
}


@pytest.mark.parametrize(
    ('words', 'where'), list(TOOL_COMMANDS), ids=lambda value: value if isinstance(value, str) else ''
)
def test_commands_parse(words, where, monkeypatch, capsys):
    """The script is there, and takes these arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
    assert (ROOT / words[1]).is_file(), where
    tool = load_tool(words[1].removeprefix('tools/').removesuffix('.py'))
    try:
        tool.main(list(words[2:]))
    except Parsed:
        return
    except SystemExit as error:
        pytest.fail(f'{where}: {shlex.join(words)}: {capsys.readouterr().err or error}')
    pytest.fail(f'{where}: {words[1]} parsed nothing')


@pytest.mark.parametrize('block', SHELL, ids=str)
def test_what_commands_name_is_there(block):
    for words in commands(block):
        if words[0] == 'make':
            assert words[1] in MAKE_TARGETS, words
        for word in words:
            if re.fullmatch(r'(?:tools|tests|requirements|docs)/[\w./-]+\.\w+', word):
                assert (ROOT / word).is_file(), word
            if re.fullmatch(r'configs/[\w./-]+\.py', word):
                assert (ROOT / word).is_file(), word


def test_python_blocks_that_are_not_run_are_python():
    for block in BLOCKS:
        if block.language == 'python':
            ast.parse(block.text)


def test_a_config_of_sphinx_has_what_it_imports():
    assert runpy.run_path(str(ROOT / 'docs/conf.py'))['release'] == mmvisattn.__version__
