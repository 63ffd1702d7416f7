import re

import pytest
import torch

from .conftest import load_tool


@pytest.fixture
def tool(monkeypatch):
    module = load_tool('analysis/benchmark_depthwise')
    monkeypatch.setattr(module, 'SIZES', [(1, 8, 6, 7), (2, 4, 5, 5)])
    return module


def test_prints_a_table_of_ratios(tool, capsys):
    tool.main(['--kernels', '3', '5', '--rounds', '1', '--device', 'cpu'])
    header, _, *rows = (line for line in capsys.readouterr().out.splitlines() if line.startswith('|'))
    assert header == '| size | layout | 3×3 torch | 5×5 torch |'
    assert [row.split(' | ')[:2] for row in rows] == [
        [f'| {size}', layout] for size in ('1×8×6×7', '2×4×5×5') for layout in ('NCHW', 'NHWC')
    ]
    assert all(re.fullmatch(r'\|.*\|.*(\| \d+\.\d\d ){2}\|', row) for row in rows)


def test_ratio_is_native_over_the_other(tool, monkeypatch):
    times = dict(native=[3.0, 6.0, 30.0], torch=[1.0, 2.0, 50.0])
    monkeypatch.setattr(tool, 'times_in_turn', lambda steps, *_: {name: times[name] for name in steps})
    args = tool.argparse.Namespace(rounds=3, device=torch.device('cpu'))
    assert tool.ratios(args, (1, 8, 6, 7), 3, torch.contiguous_format) == [3.0]


def test_step_trains_with_the_named_backend(tool, monkeypatch):
    seen = []
    original = tool.depthwise_conv2d

    def convolve(*inputs, backend):
        seen.append((backend, [x.requires_grad for x in inputs[:3]], inputs[0].stride(1)))
        return original(*inputs, backend=backend)

    monkeypatch.setattr(tool, 'depthwise_conv2d', convolve)
    tool.make_step((1, 8, 6, 7), 3, torch.channels_last, torch.device('cpu'))('torch')
    assert seen == [('torch', [True] * 3, 1)]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--kernels', '4'], ['--kernels are odd', '4']),
        (['--kernels', '0'], ["'0' is not an integer from 1"]),
        (['--device', 'gpu'], ["no device 'gpu'"]),
    ],
)
def test_wrong_arguments(tool, arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        tool.main(arguments)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'error: ' in line and all(word in line for word in words), line
