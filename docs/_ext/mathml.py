"""Formulas as MathML, which browsers draw by themselves: the pages need no network and no script for them."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own lines, which scrolls where the window is narrow."""
    translator.body.append(
        f'<div style="overflow: auto hidden; padding: 0.3em 0">{tex2mathml(node.astext(), as_block=True)}</div>'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_html_math_renderer('mathml', (inline, None), (block, None))
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
