"""Weights from elsewhere: the layouts files come in, and a loud report of what was loaded."""

from .loading import LoadReport, compare, load_pretrained, weights_of
from .timm_scheme import load_from_timm

__all__ = ['LoadReport', 'compare', 'load_from_timm', 'load_pretrained', 'weights_of']
