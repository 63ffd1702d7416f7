import subprocess
import sys
from importlib.metadata import PackageNotFoundError

from mmvisattn import check_env

import pytest
from packaging.specifiers import SpecifierSet


def rows_of(check) -> dict[str, check_env.Row]:
    return {row.item: row for row in check()}


def test_prints_versions_devices_operators_and_kernels():
    result = subprocess.run([sys.executable, '-m', 'mmvisattn.check_env'], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    for item in ('Python', 'mmvisattn', 'torch', 'CPU threads', 'GPU', 'import mmcv.ops'):
        assert f'\n{item} ' in '\n' + result.stdout
    for item in ('compat ext', 'compat weights', 'compat mmcv.ops', 'selective_scan torch', 'depthwise_conv2d torch'):
        assert f'\n{item} ' in result.stdout
    assert result.stdout.rstrip().endswith('Nothing to mend.')


WANTED = dict(torch='>=2.6', timm='>=1.0.3', mmengine='>=0.10.7', mmdet='>=3.3,<3.4', mmsegmentation='>=1.2.2,<1.3')
WANTED |= {'ftfy': '>=6.2', 'mmcv-lite': '>=2.1.0,<2.2.0'}


def rows_with(monkeypatch, **installed):
    """Rows of the packages where only these are installed, a dash in their names written as ``_``."""
    installed = {name.replace('_', '-'): version for name, version in installed.items()}
    monkeypatch.setattr(check_env, '_version', installed.get)
    monkeypatch.setattr(check_env, 'bounds', lambda: {name: SpecifierSet(bound) for name, bound in WANTED.items()})
    return rows_of(check_env.check_packages)


@pytest.mark.parametrize(
    ('installed', 'remedy'),
    [
        ({'mmcv': '2.1.0'}, ''),
        ({'mmcv_lite': '2.1.0'}, ''),
        ({'onedl_mmcv': '2.3.6'}, ''),
        ({}, "pip install 'mmcv-lite<2.2.0,>=2.1.0'"),
        ({'mmcv': '2.1.0', 'mmcv_lite': '2.1.0'}, 'one overwrote the other: pip uninstall mmcv mmcv-lite,'),
        ({'mmcv_lite': '2.1.0', 'onedl_mmcv': '2.3.6'}, 'one overwrote the other: pip uninstall mmcv-lite onedl-mmcv,'),
        ({'mmcv': '2.2.0'}, "pip install 'mmcv<2.2.0,>=2.1.0'"),
        ({'mmcv_lite': '2.0.1'}, "pip install 'mmcv-lite<2.2.0,>=2.1.0'"),
    ],
)
def test_mmcv(monkeypatch, installed, remedy):
    *_, row = rows_with(monkeypatch, **installed).values()
    assert 'mmcv' in row.item and row.remedy.startswith(remedy) and bool(remedy) == bool(row.remedy)


def test_old_and_missing_packages(monkeypatch):
    rows = rows_with(monkeypatch, torch='2.5.1+cu124', timm='1.0.3', mmdet='3.4.0', mmcv_lite='2.1.0')
    assert rows['torch'].remedy == "pip install 'torch>=2.6'"
    assert rows['mmdet'].remedy == "pip install 'mmdet<3.4,>=3.3'"
    assert rows['mmengine'].remedy == "pip install 'mmengine>=0.10.7'"
    assert rows['timm'].remedy == rows['mmsegmentation'].remedy == ''
    assert rows['mmsegmentation'].note == "for segmentation: pip install 'mmsegmentation<1.3,>=1.2.2'"
    assert 'ftfy' not in rows
    assert rows_with(monkeypatch, mmsegmentation='1.2.2')['ftfy'].remedy == "pip install 'ftfy>=6.2'"


def test_forks_have_versions_of_their_own(monkeypatch):
    rows = rows_with(monkeypatch, onedl_mmengine='0.10.12', onedl_mmdetection='3.5.1', mmengine='0.10.7')
    assert rows['onedl-mmdetection'].state == '3.5.1' and not rows['onedl-mmdetection'].remedy
    assert 'pip uninstall mmengine onedl-mmengine' in rows['mmengine'].remedy


def test_without_metadata(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    for name in ('requires', 'metadata', 'version'):
        monkeypatch.setattr(check_env, name, missing)
    assert check_env.bounds() == {}
    assert rows_of(check_env.check_python)['mmvisattn'].remedy.startswith('pip install --editable')


def test_an_import_that_fails_is_a_row_with_its_cause(monkeypatch):
    def refuse(name):
        if name == 'mmcv.ops':
            raise ImportError('undefined symbol: _ZN3c10')

    monkeypatch.setattr(check_env.importlib, 'import_module', refuse)
    row = rows_of(check_env.check_imports)['import mmcv.ops']
    assert row.state == 'fails' and '_ZN3c10' in row.note and 'mmcv-lite' in row.remedy


def test_a_remedy_sets_the_exit_status(monkeypatch, capsys):
    for name in ('python', 'packages', 'devices', 'compat', 'imports', 'kernels'):
        monkeypatch.setattr(check_env, f'check_{name}', lambda: [])
    monkeypatch.setattr(check_env, 'check_packages', lambda: [check_env.Row('torch', '2.0', '', 'update')])
    assert check_env.main() == 1
    assert '- torch: update' in capsys.readouterr().out
