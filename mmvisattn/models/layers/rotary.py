"""Rotation of pairs of adjacent channels, as in `rotary position embedding <https://arxiv.org/abs/2104.09864>`_."""

import torch
from torch import Tensor

from ...ops.common import at_least_float32


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x·cos + r(x)·sin`` with r: (x0, x1) → (−x1, x0), in float32 at least.

    Each pair turns by an angle where both of its channels are given the same one; the learnt frequencies of De-focus
    Mamba may give them different ones.

    Args:
        x (Tensor): Tokens, (..., L, N) with N even.
        cos (Tensor): Cosine of the angle of each channel, broadcast to (..., L, N).
        sin (Tensor): Its sine, likewise.

    Returns:
        Tensor: (..., L, N), float32 or float64.
    """
    x = at_least_float32(x)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin
