import subprocess
import sys

from mmvisattn import check_env

import pytest


def rows_of(check) -> dict[str, check_env.Row]:
    return {row.item: row for row in check()}


def test_prints_versions_devices_operators_and_kernels():
    result = subprocess.run([sys.executable, '-m', 'mmvisattn.check_env'], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    for item in ('Python', 'torch', 'mmengine', 'mmdet', 'mmsegmentation', 'CPU threads', 'GPU', 'import mmcv.ops'):
        assert f'\n{item} ' in '\n' + result.stdout
    for item in ('compat ext', 'compat weights', 'compat mmcv.ops', 'selective_scan torch', 'depthwise_conv2d torch'):
        assert f'\n{item} ' in result.stdout
    assert result.stdout.rstrip().endswith('Nothing to mend.')


@pytest.mark.parametrize(
    ('installed', 'remedy'),
    [
        ({'mmcv': '2.1.0'}, ''),
        ({'mmcv-lite': '2.1.0'}, ''),
        ({}, 'pip install mmcv-lite'),
        ({'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}, 'pip uninstall mmcv mmcv-lite'),
        ({'mmcv': '2.2.0'}, '< 2.2'),
        ({'mmcv-lite': '1.7.0'}, '>= 2.0'),
    ],
)
def test_mmcv(monkeypatch, installed, remedy):
    monkeypatch.setattr(check_env, '_version', installed.get)
    (row,) = check_env.check_mmcv()
    assert remedy in row.remedy and bool(remedy) == bool(row.remedy)


def test_old_and_missing_packages(monkeypatch):
    versions = {'torch': '2.0.1', 'timm': '1.0.3', 'mmdet': '3.4.0', 'mmcv-lite': '2.1.0'}
    monkeypatch.setattr(check_env, '_version', versions.get)
    rows = rows_of(check_env.check_packages)
    assert rows['torch'].remedy == "pip install 'torch>=2.1'"
    assert rows['mmdet'].remedy == "pip install 'mmdet>=3.3,<3.4'"
    assert rows['mmengine'].remedy == 'pip install mmengine'
    assert rows['timm'].remedy == rows['mmsegmentation'].remedy == ''


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
