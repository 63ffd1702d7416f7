"""The bounds stand in requirements/*.txt alone, and whatever else names a version agrees with them."""

import re
from pathlib import Path

from mmvisattn import check_env

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def requirements(name: str) -> dict[str, Requirement]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return {f'{requirement.name}{requirement.marker or ""}': requirement for requirement in found}


BOUNDS = {name: req for file in ('runtime', 'det', 'seg', 'lite') for name, req in requirements(file).items()}
PYTHON = SpecifierSet(re.search("python_requires='(.+)'", (ROOT / 'setup.py').read_text())[1])


def limit(specifier: SpecifierSet, operator: str) -> Version:
    (found,) = [Version(part.version) for part in specifier if part.operator == operator]
    return found


def test_everything_has_a_lower_bound():
    assert all(limit(requirement.specifier, '>=') for requirement in BOUNDS.values())


def test_oldest_is_the_lower_bounds():
    pins = {name: limit(pin.specifier, '==') for name, pin in requirements('oldest').items()}
    assert pins == {name: limit(requirement.specifier, '>=') for name, requirement in BOUNDS.items()}


def test_constraints_are_within_the_bounds():
    pins = requirements('constraints').values()
    for name, requirement in BOUNDS.items():
        versions = [limit(pin.specifier, '==') for pin in pins if pin.name == name]
        assert versions and all(version in requirement.specifier for version in versions), name


def test_the_tools_of_tests_and_docs_are_pinned():
    pinned = {pin.name for pin in requirements('constraints').values()}
    assert {requirement.name for file in ('tests', 'docs') for requirement in requirements(file).values()} <= pinned


def test_check_env_reads_the_same_bounds():
    assert check_env.bounds() == {name: requirement.specifier for name, requirement in BOUNDS.items()}, (
        'installed from other requirements: pip install --editable . again'
    )


# `name == 1.2`, `name>=1.2`, `name ≥ 1.2`
NAMED = re.compile(rf'(?<![\w-])(mmcv|{"|".join(BOUNDS)}) ?(==|>=|≥) ?(\d[\d.]*\d)')
TEXTS = [ROOT / 'README.md', ROOT / 'Makefile', ROOT / 'mmvisattn' / 'check_env.py']
TEXTS += [*(ROOT / 'docs').glob('*.md'), *(ROOT / 'mmvisattn' / 'compat').rglob('*.py')]


@pytest.mark.parametrize('file', TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_versions_that_texts_name(file):
    for name, operator, version in NAMED.findall(file.read_text(encoding='utf-8')):
        bound = BOUNDS['mmcv-lite' if name == 'mmcv' else name].specifier
        if operator == '==':
            assert version in bound, f'{name} {version}'
        else:
            assert Version(version) == limit(bound, '>='), f'{name} {operator} {version}'


def test_get_started_names_every_bound_that_matters():
    found = {name for name, operator, _ in NAMED.findall((ROOT / 'docs/get_started.md').read_text()) if operator == '≥'}
    assert {'torch', 'torchvision', 'mmengine', 'timm', 'numpy'} <= found


def test_python():
    lowest, beyond = limit(PYTHON, '>='), limit(PYTHON, '<')
    highest = f'3.{beyond.minor - 1}'
    for name in ('README.md', 'docs/get_started.md', 'Makefile'):
        spans = re.findall(r'Python (3\.\d+) to (3\.\d+)', (ROOT / name).read_text())
        assert spans and set(spans) == {(str(lowest), highest)}, name
    assert f'(3, {lowest.minor}) <= sys.version_info[:2] <= (3, {beyond.minor - 1})' in (ROOT / 'Makefile').read_text()
