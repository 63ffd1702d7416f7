import logging
import subprocess
import sys
from pathlib import Path

from mmvisattn import compat
from mmvisattn.compat import mmcv_ext

import pytest

ROOT = Path(__file__).parents[2]


def run(code, **environment):
    import os

    environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    return subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)


def test_import_is_light():
    result = run('import sys, mmvisattn; print(*sorted(name for name in sys.modules if "." not in name))')
    modules = set(result.stdout.split())
    assert 'mmvisattn' in modules
    assert not modules & {'torch', 'torchvision', 'mmcv', 'mmdet', 'mmseg', 'transformers', 'cv2', 'timm'}


LOG = """
import logging, sys
logging.basicConfig(level='INFO', stream=sys.stdout, format='%(name)s %(levelname)s %(message)s')
import mmvisattn
print('again')
mmvisattn.compat.install()
"""


def test_one_log_line_for_each_measure_and_none_on_repeat():
    result = run(LOG)
    first, again = result.stdout.split('again')
    assert not again.strip()
    active = {record.name for record in compat.report() if record.state == 'active'}
    lines = first.strip().splitlines()
    assert {line.split()[3].rstrip(':') for line in lines} == active
    assert len(lines) == len(active)
    assert all(line.startswith('mmvisattn INFO compat ') for line in lines)


def test_all_off():
    result = run(LOG + 'import mmcv.ops', MMVISATTN_COMPAT='0')
    assert result.stdout.strip() == 'again'
    assert ("No module named 'mmcv._ext'" in result.stderr) != mmcv_ext.compiled()


def test_single_ones_off():
    result = run(LOG + 'print(*mmvisattn.compat.report(), sep="\\n")', MMVISATTN_COMPAT='-ext,-weights')
    assert 'compat ext' not in result.stdout and 'compat weights' not in result.stdout
    assert "name='ext', state='off', detail='MMVISATTN_COMPAT=-ext,-weights'" in result.stdout
    assert f"name='mmcv.ops', state='{'compiled' if mmcv_ext.compiled() else 'none'}'" in result.stdout


@pytest.mark.parametrize('value', ['', '1', ' 1 '])
def test_switch_on(value):
    assert compat._switched_off(value) == set()


def test_switch_off():
    assert compat._switched_off('0') == set(compat.MEASURES)
    assert compat._switched_off('-weights, -packages') == {'weights', 'packages'}


@pytest.mark.parametrize('value', ['ext', '-extt', 'off', '-ext,', '2'])
def test_misspelt_switch(value):
    with pytest.raises(ValueError, match=r'MMVISATTN_COMPAT=.* is not understood .*-ext, -weights'):
        compat._switched_off(value)


def test_misspelt_switch_stops_the_import():
    result = run('import mmvisattn', MMVISATTN_COMPAT='-exr')
    assert result.returncode != 0
    assert 'MMVISATTN_COMPAT=-exr is not understood at -exr' in result.stderr.splitlines()[-1]


def test_report(caplog):
    records = {record.name: record for record in compat.report()}
    assert list(records) == [*compat.MEASURES, 'mmcv.ops']
    assert records['weights'].state == 'active'
    assert records['mmcv.ops'].state in ('supplied', 'compiled')
    if records['mmcv.ops'].state == 'supplied':
        supplied, missing = records['mmcv.ops'].detail.split(';')
        assert 'roi_align_forward' in supplied and 'psamask_forward' in missing
    with caplog.at_level(logging.INFO, logger='mmvisattn'):
        compat.install()
    assert not caplog.records
