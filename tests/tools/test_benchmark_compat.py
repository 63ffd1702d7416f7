import json
import sys

from mmvisattn.compat import mmcv_ext
from mmvisattn.errors import UserError

import mmcv.ops  # noqa: F401  whose modules are told what they run on
import pytest

from tools.analysis import benchmark_compat as tool


@pytest.fixture
def small(monkeypatch):
    for name, value in dict(IMAGE=(64, 96), CHANNELS=4, BOXES=20).items():
        monkeypatch.setattr(tool, name, value)


@pytest.fixture
def kept(monkeypatch):
    """The modules of ``mmcv.ops`` with the operators that they have."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', module.ext_module)


def test_both_forms_are_timed(small, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(mmcv_ext, 'compiled', lambda: True)  # what is supplied, beside itself, where there is no other
    file = tmp_path / 'report.json'
    tool.main(['--rounds', '1', '--clock', 'cpu', '--json', str(file)])
    rows = json.loads(file.read_text())['tables'][0]['rows']
    assert [row[0].split(',')[0] for row in rows] == [
        'nms',
        'soft_nms',
        'roi_align',
        'deform_conv2d',
        'modulated_deform_conv2d',
    ]
    assert all(len(row) == 7 and float(row[3]) > 0 for row in rows)
    assert [row[6] == '–' for row in rows] == [True, True, False, False, False]


def test_each_form_runs_on_its_own_operators(small, kept):
    calls = []

    class Ext:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, operator):
            calls.append((self.name, operator))
            return mmcv_ext.supplied()[operator]

    operator, inputs = next(value for name, value in tool.cases().items() if name.startswith('roi_align'))
    steps = tool.steps_of(operator, inputs, {name: Ext(name) for name in ('compiled', 'ours')})
    for name in ('compiled', 'ours'):
        calls.clear()
        steps['training'][name]()
        assert calls == [(name, 'roi_align_forward'), (name, 'roi_align_backward')]


@pytest.mark.skipif(mmcv_ext.compiled(), reason='mmcv is compiled')
def test_without_a_compiled_mmcv_it_says_where_there_is_one(capsys):
    with pytest.raises((UserError, SystemExit)) as error:
        tool.main(['--rounds', '1'])
    assert 'make test-compiled' in str(error.value) + capsys.readouterr().err
