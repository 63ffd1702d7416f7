import json

import pytest

from tools.analysis import busy as tool


def test_each_policy_alone_and_beside_another(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'POLICIES', dict(one={}, sleep=dict(OMP_WAIT_POLICY='PASSIVE')))
    path = tmp_path / 'busy.json'
    words = ['timm:resnet10t', '--size', '64x64', '--seconds', '1', '--rounds', '1', '--json', str(path)]
    tool.main(words)
    (table,) = json.loads(path.read_text())['tables']
    assert [row[0] for row in table['rows']] == ['one', 'sleep']
    assert table['rows'][0][2] == table['rows'][0][4] == '1.00'


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
    args = type('Args', (), dict(network='n', size=(8, 8), seconds=1))
    assert tool.measure(args, dict(GOMP_SPINCOUNT='7'), 2) == 0.5
    assert len(seen) == 2 and all('OMP_WAIT_POLICY' not in env and env['GOMP_SPINCOUNT'] == '7' for env in seen)


def test_a_network_that_is_none(capfd):
    with pytest.raises(SystemExit):
        tool.main(['FCViT:huge', '--rounds', '1', '--seconds', '1'])
    assert "no arch 'huge'" in capfd.readouterr().err
