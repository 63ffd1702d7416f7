"""Settings of Sphinx. Its source is the whole repository: links between files are the same here as on a forge."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs/_ext')]

import mmvisattn  # noqa: E402

project = 'mmvisattn'
author = 'the mmvisattn contributors'
copyright = author
version = release = mmvisattn.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'mathml',
    'tables',
]
root_doc = 'docs/index'
include_patterns = ['docs/**.md', 'configs/*/README.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
exclude_patterns = ['.*', 'build', 'data', 'mmvisattn', 'tests', 'tools', 'work_dirs']

myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 4

autodoc_typehints = 'none'  # the docstrings state them
autodoc_member_order = 'bysource'
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_math_renderer = 'mathml'
html_theme = 'furo'
html_title = f'mmvisattn {release}'
html_copy_source = False
