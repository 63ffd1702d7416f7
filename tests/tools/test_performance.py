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
    performance.REPORTS.mkdir()
    return performance


def write(tool, name, **contents):
    report = {'command': f'python {name}.py', 'machine': MACHINE, 'rounds': 3, **contents}
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
    write(tool, 'one')
    with pytest.raises(SystemExit):
        tool.main(['oen'])
    assert "no report 'oen' (did you mean 'one'?)" in capsys.readouterr().err


def test_what_is_named_is_measured_anew_by_its_own_command(tool, monkeypatch):
    calls = []
    monkeypatch.setattr(tool, 'run_script', lambda *words: calls.append([str(word) for word in words]))
    write(tool, 'one')
    write(tool, 'two words', command="python two.py 'a b'")
    tool.PAGE.write_text('nothing\n')
    one, two = (str(tool.REPORTS / f'{name}.json') for name in ('one', 'two words'))
    tool.main(['one'])
    assert calls == [['one.py', '--json', one]]
    tool.main(['all'])
    assert calls[1:] == [['one.py', '--json', one], ['two.py', 'a b', '--json', two]]


def test_the_page_of_the_project_is_that_of_its_reports():
    page = performance.PAGE.read_text()
    assert performance.fill(page) == page
    assert all(f'<!-- {path.stem} -->' in page for path in performance.REPORTS.glob('*.json'))


@pytest.mark.parametrize('report', sorted(performance.REPORTS.glob('*.json')), ids=lambda path: path.stem)
def test_a_report_tells_the_command_that_makes_it(report):
    python, tool, *_ = json.loads(report.read_text())['command'].split()
    assert python == 'python' and tool.startswith('tools/analysis/') and (ROOT / tool).is_file()


def test_a_report_that_is_yet_to_be_made(tool, monkeypatch):
    calls = []
    monkeypatch.setattr(tool, 'run_script', lambda *words: calls.append([str(word) for word in words]))
    tool.PAGE.write_text('nothing\n')
    tool.main(['gpu'])
    assert calls == [['tools/analysis/gpu.py', '--json', str(tool.REPORTS / 'gpu.json')]]
    tool.main(['all'])
    assert len(calls) == 1
