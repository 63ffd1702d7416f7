"""Attention backbones and necks for OpenMMLab's detectors and segmentors."""

from . import compat
from .version import __version__

# Before anything asks mmcv for an operator or loads a checkpoint.
compat.install()

__all__ = ['__version__']
