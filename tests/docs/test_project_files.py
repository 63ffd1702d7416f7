"""Citation, hooks, templates and changes, as far as a program can tell."""

import re

import mmvisattn

import yaml

from tests.tools.utils import ROOT


def test_citation():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == mmvisattn.__version__ and citation['license'] == 'Apache-2.0'
    urls = {reference['url'] for reference in citation['references']}
    papers = {
        collection['Paper']['URL']
        for path in (ROOT / 'configs').glob('*/metafile.yml')
        for collection in yaml.safe_load(path.read_text())['Collections']
    }
    toolboxes = {
        f'https://github.com/open-mmlab/{name}' for name in ('mmengine', 'mmcv', 'mmdetection', 'mmsegmentation')
    }
    assert len(papers) == 3 and papers | toolboxes == urls


def test_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    linted = re.findall(r'\$\(RUN\) -m ((?:ruff|mypy)(?: \w+)?)', (ROOT / 'Makefile').read_text())
    assert [re.match(r'\.venv/bin/python -m ((?:ruff|mypy)(?: \w+)?)', hook['entry'])[1] for hook in hooks] == linted


def test_templates():
    templates = sorted((ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'))
    assert len(templates) == 3
    for path in templates:
        template = yaml.safe_load(path.read_text())
        assert {'name', 'description', 'body'} <= set(template)
        names = [part['id'] for part in template['body'] if part['type'] != 'markdown']
        assert names and len(set(names)) == len(names)


def test_the_version_has_changes():
    assert f'\n## {mmvisattn.__version__} ' in (ROOT / 'CHANGELOG.md').read_text()
