import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tools.analysis import benchmark_operators as tool

CPU = torch.device('cpu')


def rows_of(report):
    """The rows of all tables by their first cell."""
    return {row[0]: row[1:] for table in report['tables'] for row in table['rows']}


@pytest.fixture
def run(tmp_path):
    """Run a case of the benchmark on the CPU; returns its report."""

    def run(*arguments: str) -> dict:
        file = tmp_path / 'report.json'
        tool.main([*arguments, '--rounds', '1', '--device', 'cpu', '--json', str(file)])
        return json.loads(file.read_text())

    return run


@pytest.fixture
def small_scans(monkeypatch):
    for name, size in dict(SCAN_DIM=6, SCAN_STATE=3, SCAN_LENGTH=33, GROWTH_LENGTHS=[16, 32, 64]).items():
        monkeypatch.setattr(tool, name, size)


@pytest.mark.parametrize('case', ['scan', 'scan-growth'])
def test_scan(case, run, small_scans, capsys):
    report = run(case)
    assert report['command'].startswith(f'python tools/analysis/benchmark_operators.py {case} --rounds 1')
    assert '--json' not in report['command']
    rows = rows_of(report)
    if case == 'scan-growth':
        assert all(len(rows[f'torch, {step}']) == 4 for step in ('forward', 'forward + backward'))
    else:
        forward, training = ({row[0] for row in table['rows']} for table in report['tables'])
        assert {'torch', 'time-major loop', 'materialising'} <= forward and 'torch' in training
        assert 'time-major loop' not in training
    printed = capsys.readouterr().out
    assert all(f'| {name} | {" | ".join(cells)} |' in printed for name, cells in rows.items())


def test_scans_agree(small_scans):
    """What the scan is measured against computes the same."""
    torch.manual_seed(0)
    inputs = tool.scan_inputs(2, 40, CPU)
    y = tool.selective_scan.selective_scan(*inputs, backend='torch')
    for scan in (tool.time_major_loop, tool.materialising_scan):
        torch.testing.assert_close(scan(*inputs), y)


def test_attention(run, monkeypatch):
    monkeypatch.setattr(tool, 'LENGTHS', (150,))
    rows = rows_of(run('attention'))
    assert len(rows) == 5
    for name in ('causal attention: fused, no decay', 'retention: its matrix products'):
        assert rows[name][1] == rows[name][4] == '1.00'


def test_what_retention_is_measured_against_has_its_products():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 2 * tool.CHUNK, 4) for _ in range(3))
    counts = []
    for operator in tool.ATTENTION['retention'].values():
        with FlopCounterMode(display=False) as counter:
            operator(q, k, v, torch.tensor([-0.1, -0.2]))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_depthwise_prints_a_table_of_ratios(run, monkeypatch):
    monkeypatch.setattr(tool, 'SIZES', [(1, 8, 6, 7), (2, 4, 5, 5)])
    monkeypatch.setattr(tool, 'KERNELS', (3, 5))
    (table,) = run('depthwise')['tables']
    assert table['columns'] == ['size', 'layout', '3×3 torch', '5×5 torch']
    assert [row[:2] for row in table['rows']] == [
        [size, layout] for size in ('1×8×6×7', '2×4×5×5') for layout in ('NCHW', 'NHWC')
    ]
    assert all(re.fullmatch(r'\d+\.\d\d', cell) for row in table['rows'] for cell in row[2:])


def test_depthwise_ratio_is_native_over_the_other(run, monkeypatch):
    times = dict(native=[3.0, 6.0, 30.0], torch=[1.0, 2.0, 50.0])
    monkeypatch.setattr(tool, 'times_in_turn', lambda steps, *_: {name: times[name] for name in steps})
    monkeypatch.setattr(tool, 'SIZES', [(1, 8, 6, 7)])
    monkeypatch.setattr(tool, 'KERNELS', (3,))
    (table,) = run('depthwise')['tables']
    assert table['rows'][0] == ['1×8×6×7', 'NCHW', '3.00']


def test_depthwise_step_trains_with_the_named_backend(monkeypatch):
    seen = []
    original = tool.depthwise_conv.depthwise_conv2d

    def convolve(*inputs, backend, padding):
        seen.append((backend, [x.requires_grad for x in inputs[:3]], inputs[0].stride(1)))
        return original(*inputs, backend=backend, padding=padding)

    monkeypatch.setattr(tool.depthwise_conv, 'depthwise_conv2d', convolve)
    out, *grads = tool.depthwise_steps((1, 8, 6, 7), 3, torch.channels_last, ['native', 'torch'], CPU)['torch']()
    assert seen == [('torch', [True] * 3, 1)]
    assert [x.shape for x in (out, *grads)] == [(1, 8, 6, 7), (1, 8, 6, 7), (8, 1, 3, 3), (8,)]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['depthwise', '--rounds', '0'], ["'0' is not an integer from 1"]),
        (['scan', '--device', 'gpu'], ["no device 'gpu'"]),
        (['scan', '--json', 'no/such.json'], ['cannot be written', "no folder 'no'"]),
        (['convolution'], ["'convolution'", 'attention', 'depthwise', 'scan']),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        tool.main(arguments)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'error: ' in line and all(word in line for word in words), line
