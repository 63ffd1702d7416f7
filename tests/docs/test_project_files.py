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


def page(name: str) -> str:
    return (ROOT / name).read_text()


def test_figures_of_the_readme_are_those_of_the_pages():
    rows = [line.strip('| ').split(' | ') for line in page('README.md').splitlines() if line.startswith('|')]
    figures = {re.search(r'\((.+?)\)', row[2])[1]: row[1] for row in rows if len(row) == 3 and '](' in row[2]}
    assert re.search(r'(\d+ of \d+) pairs', page('docs/heads.md'))[1] == figures['docs/heads.md']
    stock = re.search(r'\[(\d+) stock models', page('README.md'))[1]
    assert len(re.findall(r'^\| .* \| `mm(?:det|seg)::', page('docs/heads.md'), re.M)) == int(stock)

    performance = page('docs/performance.md')
    training = performance.partition('<!-- fcvit-train -->')[2].partition('<!-- end -->')[0]
    assert f'| {figures["docs/performance.md#fcvit"].split()[0]} |' in training
    percent, speed = re.fullmatch(
        r'(\d+) % .*, ([\d.]+) times .*', figures['docs/performance.md#flexattention']
    ).groups()
    (row,) = re.findall(r'\| FlexViT, 25% \| 479.* \|', performance)
    cells = row.strip('| ').split(' | ')
    assert cells[2] == f'{percent}%' and round(float(cells[4].rstrip('×')), 1) == float(speed)

    kills = re.findall(r'(\d+) kills of (\d+) trainings: all (\d+) ended', page('docs/reliability.md'))
    trainings = sum(int(number) for _, number, _ in kills)
    fuzzed = re.findall(
        r'1,000: (\d+) refused in one line, (\d+) loaded[^|]*none ran code', page('docs/reliability.md')
    )
    assert sum(int(number) for pair in fuzzed for number in pair) == 2000
    assert f'killed {sum(int(kill) for kill, *_ in kills)} times' in page('README.md')
    assert {f'{trainings} of {trainings}', '2,000 of 2,000'} <= {row[1] for row in rows if len(row) == 3}

    section = page('configs/mini/README.md').partition('## The demo')[2]
    demo = re.search(r'^\| 0 \| ([\d.]+) \| .* \| ([\d.]+) \| [\d.]+ \|$', section, re.M)
    assert figures['configs/mini/README.md#the-demo'] == f'box AP50 {demo[1]}, mIoU {demo[2]}'


def test_results_in_readmes_are_those_of_the_metafiles():
    checked = 0
    for path in sorted((ROOT / 'configs').glob('*/metafile.yml')):
        rows = path.with_name('README.md').read_text().splitlines()
        for model in yaml.safe_load(path.read_text())['Models']:
            (row,) = [row for row in rows if row.startswith('|') and f'({model["Name"]}.py)' in row]
            for result in model.get('Results', []):
                for value in result['Metrics'].values():
                    assert f'| {value} |' in row, (model['Name'], value)
                    checked += 1
    assert checked > 8
