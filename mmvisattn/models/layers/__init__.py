"""What several networks are made of."""

from .bandpass import BandpassFilter, rotate
from .drop_path import DropPath
from .norm import LN2d, at_least_float32, group_rms_norm
from .patch_sequence import PatchSequence
from .rotary import turn_pairs
from .transformer_block import TransformerBlock, init_linear

__all__ = [
    'BandpassFilter',
    'DropPath',
    'LN2d',
    'PatchSequence',
    'TransformerBlock',
    'at_least_float32',
    'group_rms_norm',
    'init_linear',
    'rotate',
    'turn_pairs',
]
