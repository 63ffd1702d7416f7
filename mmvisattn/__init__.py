"""Attention backbones and necks for OpenMMLab's detectors and segmentors."""

from . import _threads  # noqa: F401  before mmengine loads torch

# isort: split
from mmengine.config.utils import MODULE2PACKAGE

from . import compat
from .version import __version__

# Before anything asks mmcv for an operator or loads a checkpoint.
compat.install()
# The packages whose configs mmengine knows by `name::path`.
MODULE2PACKAGE['mmvisattn'] = 'mmvisattn'

__all__ = ['__version__']
