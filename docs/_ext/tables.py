"""Tables that are made when the pages are built.

``{model-table} FAMILY`` lists the models of ``configs/FAMILY/metafile.yml``, ``{tool-table} FOLDER`` the tools of a
folder by the first lines of their docstrings.
"""

import ast
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


def model_lines(family: str) -> list[str]:
    """The models of a family as a table in Markdown.

    Args:
        family (str): The folder in ``configs``.

    Returns:
        list[str]: Its lines; links are absolute within the repository.
    """
    models = yaml.safe_load((ROOT / 'configs' / family / 'metafile.yml').read_text())['Models']
    metrics = list(dict.fromkeys(name for model in models for name in _metrics(model)))
    rows = [['config', 'data', 'recipe', 'schedule', 'batch', *metrics]]
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
    return _markdown(rows)


def tool_lines(folder: str) -> list[str]:
    """The tools of a folder as a table in Markdown.

    Args:
        folder (str): Such as ``tools/analysis``.

    Returns:
        list[str]: Its lines: the path of each script with a ``main``, and what it does.
    """
    rows = [['command', 'what it does']]
    for path in sorted((ROOT / folder).glob('*.py')):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == 'main' for node in tree.body):
            told = (ast.get_docstring(tree) or '').partition('\n\n')[0].replace('\n', ' ').replace('``', '`')
            rows.append([f'`python {path.relative_to(ROOT)}`', told])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> list[str]:
    header, *body = rows
    return [f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *body)]


def _metrics(model: dict) -> dict[str, float]:
    return {name: value for result in model.get('Results', []) for name, value in result['Metrics'].items()}


class Table(SphinxDirective):
    """A directive with one argument, whose table is parsed as if it stood there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the table where the directive stands."""
        (argument,) = self.arguments
        lines = model_lines(argument) if self.name == 'model-table' else tool_lines(argument)
        self.env.note_reread()  # what it is made of may have changed
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=argument), self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_directive('model-table', Table)
    app.add_directive('tool-table', Table)
    return dict(version='2', parallel_read_safe=True)
