import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from .conftest import load_tool


def table_rows(report):
    """The rows of all tables by their first cell."""
    return {row[0]: row[1:] for table in report['tables'] for row in table['rows']}


@pytest.mark.parametrize('growth', [False, True])
def test_scan(growth, tmp_path, capsys, monkeypatch):
    tool = load_tool('analysis/benchmark_scan')
    monkeypatch.setattr(tool, 'GROWTH_LENGTHS', [16, 32, 64])
    sizes = ['--dim', '8', '--length', '33', '--state', '2', '--rounds', '1', '--device', 'cpu']
    file = tmp_path / 'scan.json'
    tool.main([*sizes, *['--growth'] * growth, '--json', str(file)])
    report = json.loads(file.read_text())
    assert '--json' not in report['command'] and '--length 33' in report['command']
    rows = table_rows(report)
    if growth:
        assert all(len(rows[f'torch, {step}']) == 4 for step in ('forward', 'forward + backward'))
    else:
        forward = [row[0] for row in report['tables'][0]['rows']]
        assert {'torch', 'time-major loop', 'materialising'} <= set(forward)
    printed = capsys.readouterr().out
    assert all(f'| {name} | {" | ".join(cells)} |' in printed for name, cells in rows.items())


def test_attention(tmp_path):
    tool = load_tool('analysis/benchmark_attention')
    file = tmp_path / 'attention.json'
    tool.main(['--lengths', '150', '--rounds', '1', '--device', 'cpu', '--json', str(file)])
    rows = table_rows(json.loads(file.read_text()))
    assert len(rows) == 5
    for name in ('causal attention: fused, no decay', 'retention: its matrix products'):
        assert rows[name][1] == rows[name][4] == '1.00'


def test_what_retention_is_measured_against_has_its_products():
    tool = load_tool('analysis/benchmark_attention')
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 2 * tool.CHUNK, 4) for _ in range(3))
    counts = []
    for operator in tool.PAIRS['retention'].values():
        with FlopCounterMode(display=False) as counter:
            operator(q, k, v, torch.tensor([-0.1, -0.2]))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
