"""``{model-table} FAMILY``: the models of ``configs/FAMILY/metafile.yml`` as a table, made when the pages are built."""

from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


def lines(family: str) -> list[str]:
    """The table in Markdown.

    Args:
        family (str): The folder in ``configs``.

    Returns:
        list[str]: Its lines; links are absolute within the repository.
    """
    models = yaml.safe_load((ROOT / 'configs' / family / 'metafile.yml').read_text())['Models']
    metrics = list(dict.fromkeys(name for model in models for name in _metrics(model)))
    header = ['config', 'data', 'recipe', 'schedule', 'batch', *metrics]
    rows = []
    for model in models:
        data = model['Metadata']
        schedule = f'{data["Epochs"]} epochs' if 'Epochs' in data else f'{data["Iterations"] // 1000}k iterations'
        found = _metrics(model)
        rows.append(
            [
                f'[{model["Name"]}](/{model["Config"]})',
                data['Training Data'],
                data['Recipe'],
                schedule,
                str(data['Batch Size']),
                *(str(found.get(name, '')) for name in metrics),
            ]
        )
    return [f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *rows)]


def _metrics(model: dict) -> dict[str, float]:
    return {name: value for result in model.get('Results', []) for name, value in result['Metrics'].items()}


class ModelTable(SphinxDirective):
    """The directive; its argument is the family."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the table where the directive stands."""
        (family,) = self.arguments
        metafile = ROOT / 'configs' / family / 'metafile.yml'
        self.env.note_dependency(str(metafile))
        content = StringList(lines(family), source=str(metafile))
        container = nodes.container()
        self.state.nested_parse(content, self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_directive('model-table', ModelTable)
    return dict(version='1', parallel_read_safe=True)
