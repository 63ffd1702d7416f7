import json

from mmvisattn.errors import UserError

import pytest

from tools.analysis import performance

from .utils import ROOT

MACHINE = dict(device='d', threads=2, torch='1', date='today')


@pytest.fixture
def tool(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, 'PAGE', tmp_path / 'page.md')
    monkeypatch.setattr(performance, 'REPORTS', tmp_path / 'reports')
    monkeypatch.setattr(performance, 'RUNS', {'one': '', 'two': ''})
    performance.REPORTS.mkdir()
    return performance


def write(tool, name, **contents):
    report = dict(command=f'python {name}.py', machine=MACHINE, rounds=3, **contents)
    (tool.REPORTS / f'{name}.json').write_text(json.dumps(report))


def test_page_holds_the_tables_of_its_reports(tool):
    write(tool, 'one', tables=[dict(title='t', columns=['a', 'b'], rows=[['1', '2'], ['3', '4']])])
    write(tool, 'two', tables=[dict(title='u', columns=['c'], rows=[['5']])] * 2)
    text = 'before\n\n<!-- one -->\n<!-- end -->\n\nbetween\n\n<!-- two -->\nold\n<!-- end -->\n\nafter\n'
    tool.PAGE.write_text(text)
    tool.main([])
    page = tool.PAGE.read_text()
    assert '`python one.py`' in page and '| 3 | 4 |' in page and page.count('| 5 |') == 2
    assert 'old' not in page and [page.index(word) for word in ('before', 'one.py', 'between', 'two.py', 'after')]
    tool.main([])
    assert tool.PAGE.read_text() == page


def test_a_report_that_is_not_there_is_named(tool, capsys):
    tool.PAGE.write_text('<!-- one -->\n<!-- end -->\n')
    with pytest.raises(UserError, match='one.json'):
        tool.fill(tool.PAGE.read_text())
    with pytest.raises(UserError, match="asks for 'three'"):
        tool.fill('<!-- three -->\n<!-- end -->\n')
    with pytest.raises(SystemExit):
        tool.main(['three'])
    assert "no report 'three'" in capsys.readouterr().err


def test_what_is_named_is_measured_anew(tool, monkeypatch):
    calls = []
    monkeypatch.setattr(tool, 'run_script', lambda *words: calls.append([str(word) for word in words]))
    monkeypatch.setattr(tool, 'RUNS', {'one': 'benchmark.py A', 'two': 'flex_cost.py'})
    tool.PAGE.write_text('nothing\n')
    tool.main(['two'])
    assert calls == [['tools/analysis/flex_cost.py', '--json', str(tool.REPORTS / 'two.json')]]
    calls.clear()
    monkeypatch.setattr(tool, 'RUNS', {'growth': 'benchmark.py A', 'two': 'flex_cost.py'})
    tool.main(['all'])
    assert [words[:4] for words in calls] == [
        ['tools/analysis/benchmark.py', 'A', '--plot', str(tool.PLOT)],
        ['tools/analysis/flex_cost.py', '--json', str(tool.REPORTS / 'two.json')],
    ]


def test_the_page_of_the_project_is_that_of_its_reports():
    page = performance.PAGE.read_text()
    assert performance.fill(page) == page


@pytest.mark.parametrize('name', performance.RUNS)
def test_a_report_tells_the_command_that_makes_it(name):
    command = json.loads((performance.REPORTS / f'{name}.json').read_text())['command']
    assert command == f'python tools/analysis/{performance.RUNS[name]}'
    assert (ROOT / command.split()[1]).is_file()
