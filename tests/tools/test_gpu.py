import json

from mmvisattn.compat import mmcv_ext

import pytest

from tools.analysis import gpu as tool

# mmcv's compiled RoIAlign computes in float32 on the CPU.
WITHOUT_BFLOAT16 = ['fails: expected scalar type Float but found BFloat16'] * mmcv_ext.compiled()


@pytest.fixture
def run(tmp_path, capsys):
    def run(*words):
        path = tmp_path / 'gpu.json'
        tool.main([*words, '--tiny', '--rounds', '1', '--device', 'cpu', '--json', str(path)])
        return json.loads(path.read_text())

    return run


def test_all_cases_run_without_a_gpu(run):
    report = run()
    titles = [table['title'] for table in report['tables']]
    assert len(titles) == 2 + 2 + 1 + 6  # memory formats, steps of the scan, detector, steps of the networks
    assert any('compiled' in title for title in titles)
    for table in report['tables']:
        failed = [cell for row in table['rows'] for cell in row if 'fails' in cell]
        assert table['rows'] and (not failed or failed == WITHOUT_BFLOAT16 * len(failed))


def test_what_moves_is_counted_once(run, monkeypatch):
    size = (1, 8, 12, 12)
    monkeypatch.setattr(tool, 'times_in_turn', lambda steps, *_: {name: [1e-9] for name in steps})
    first, *_ = run('operators')['tables']
    rows = {name: float(cell) for name, _, cell in first['rows']}
    assert first['title'].endswith('×'.join(map(str, size)))
    assert rows['copy of the input'] == pytest.approx(2 * 4 * 8 * 144, rel=1e-3)
    assert rows['native'] == pytest.approx(4 * (3 * 8 * 144 + 2 * (8 * 121 + 8)), rel=1e-3)  # x, y, dx; weights, bias


def test_what_fails_is_told_and_the_others_go_on(run, monkeypatch):
    monkeypatch.setattr(tool, 'TINY', tool.TINY | dict(detectors=('no/such.py', *tool.TINY['detectors'])))
    (table,) = run('detectors')['tables']
    told = {row[0]: row[1] for row in table['rows']}
    assert set(told) == set(tool.TINY['detectors'])
    failed = {told[name] for name in told if 'fails: ' in told[name]}
    assert failed - set(WITHOUT_BFLOAT16) == {told['no/such.py']}


def test_time_that_has_passed_ends_it(run, monkeypatch):
    clock = iter(range(0, 10**6, 61))
    monkeypatch.setattr(tool.time, 'monotonic', lambda: next(clock))
    assert len(run('operators', '--minutes', '1')['tables']) == 1


@pytest.mark.parametrize('words, told', [(['nothing', '--tiny'], "no case 'nothing'"), (['--device', 'cpu'], '--tiny')])
def test_wrong_arguments(words, told, capsys):
    with pytest.raises(SystemExit):
        tool.main(words)
    assert told in capsys.readouterr().err
