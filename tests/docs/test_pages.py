"""The tables of models and the notebook; that the pages build without a warning is part of `make lint`."""

import importlib
import re
import sys

import pytest
import yaml

from tests.tools.utils import ROOT

pytest.importorskip('sphinx', reason='the packages of requirements/docs.txt are not installed')

FAMILIES = ['fcvit', 'defocus', 'flexattention']


@pytest.fixture(scope='module')
def tables():
    sys.path.insert(0, str(ROOT / 'docs/_ext'))
    yield importlib.import_module('tables')
    sys.path.remove(str(ROOT / 'docs/_ext'))


@pytest.mark.parametrize('family', FAMILIES)
def test_tables_hold_what_the_metafiles_say(family, tables):
    models = yaml.safe_load((ROOT / f'configs/{family}/metafile.yml').read_text())['Models']
    header, _, *rows = [line.strip('| ').split(' | ') for line in tables.model_lines(family)]
    assert len(rows) == len(models)
    for row, model in zip(rows, models):
        assert f'[{model["Name"]}](/{model["Config"]})' == row[0] and model['Metadata']['Recipe'] == row[2]
        for result in model.get('Results', []):
            for name, value in result['Metrics'].items():
                assert row[header.index(name)] == str(value)


def test_no_figure_without_a_metafile(tables):
    text = '\n'.join(tables.model_lines('flexattention'))
    assert ' AP' not in text and 'mIoU' not in text  # nobody has published any


def test_every_tool_says_what_it_does(tables):
    lines = [line for folder in ('tools', 'tools/data', 'tools/analysis') for line in tables.tool_lines(folder)[2:]]
    told = dict(re.fullmatch(r'\| `python (\S+)` \| (\S.*\.) \|', line).groups() for line in lines)
    scripts = [path for path in (ROOT / 'tools').rglob('*.py') if "if __name__ == '__main__':" in path.read_text()]
    assert set(told) == {str(path.relative_to(ROOT)) for path in scripts}


def test_the_notebook_was_run():
    import nbformat

    path = ROOT / 'docs/tour.ipynb'
    assert path.stat().st_size < 500_000
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum('image/png' in output.get('data', {}) for cell in cells for output in cell.outputs) >= 5
    assert not any(output.output_type == 'error' for cell in cells for output in cell.outputs)
    assert str(ROOT) not in path.read_text() and '/tmp' not in path.read_text()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / 'docs/tour.ipynb', 4)
    NotebookClient(notebook, timeout=600, resources=dict(metadata=dict(path=str(ROOT / 'docs')))).execute()
    printed = ''.join(output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', []))
    assert float(re.search(r'mIoU: +([\d.]+)', printed)[1]) > 20  # chance is below 10
