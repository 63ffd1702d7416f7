"""The golden vectors in tests/data/golden; see its README."""

from functools import partial
from pathlib import Path

from mmvisattn.testing import load_golden

load = partial(load_golden, Path(__file__).parent / 'data/golden')
