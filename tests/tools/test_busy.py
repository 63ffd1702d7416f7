import json
from itertools import cycle
from types import SimpleNamespace

import pytest

from tools.analysis import busy as tool


def arguments(network, seconds):
    return SimpleNamespace(network=network, size=(64, 64), seconds=seconds)


def test_two_processes_train_at_once():
    assert 0 < tool.measure(arguments('timm:resnet10t', 0.2), tool.POLICIES['sleep'], 2) < 10


def test_each_policy_alone_and_beside_another(tmp_path, monkeypatch):
    seconds = {('one', 1): [0.2, 0.4, 0.3], ('one', 2): [0.5], ('other', 1): [0.15], ('other', 2): [1.0]}
    turns = {key: cycle(values) for key, values in seconds.items()}
    monkeypatch.setattr(tool, 'POLICIES', dict(one='one', other='other'))
    monkeypatch.setattr(tool, 'measure', lambda args, policy, processes: next(turns[policy, processes]))
    path = tmp_path / 'busy.json'
    tool.main(['timm:resnet10t', '--size', '64x64', '--rounds', '3', '--json', str(path)])
    (table,) = json.loads(path.read_text())['tables']
    assert [row[0] for row in table['rows']] == ['one', 'other']
    assert [row[2::2] for row in table['rows']] == [['1.00', '1.00'], ['0.50', '2.00']]
    assert [row[1].split()[0] for row in table['rows']] == ['300.0', '150.0']


def test_processes_have_the_policy_and_no_other(monkeypatch):
    seen = []

    class Child:
        def __init__(self, words, env, **pipes):
            seen.append(env)
            self.stdin = self.stdout = self

        readline, communicate = (lambda self: 'ready\n'), (lambda self: ('0.5 0.25 1', None))
        write = flush = lambda self, *_: None

    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    monkeypatch.setattr(tool.subprocess, 'Popen', Child)
    assert tool.measure(arguments('n', 1), dict(GOMP_SPINCOUNT='7'), 2) == 0.5
    assert len(seen) == 2 and all('OMP_WAIT_POLICY' not in env and env['GOMP_SPINCOUNT'] == '7' for env in seen)


def test_a_network_that_is_none(capfd):
    with pytest.raises(SystemExit):
        tool.main(['FCViT:huge', '--rounds', '1', '--seconds', '1'])
    assert "no arch 'huge'" in capfd.readouterr().err
