"""Decay of attention with distance, ``e^{λ(t−s)}``, as factors of queries and keys."""

import torch
from torch import Tensor

from .common import is_traced

# Largest exponent of a factor of the decay. A masked product of query and key holds two of them, and float32 ends at
# e^88: ten million are left for query and key themselves.
MAX_EXPONENT = 36.0


def decay_factors_fit(rate: Tensor, length: int, dtype: torch.dtype) -> bool:
    """Whether :func:`decay_factors` stay in the range of the type, which is not asked where a graph is recorded.

    Args:
        rate (Tensor): λ of each head, (heads,).
        length (int): Number of positions.
        dtype (torch.dtype): Type of queries and keys; float16 has too small a range.
    """
    if is_traced() or rate.device.type == 'meta' or dtype == torch.float16:
        return False  # the answer depends on a value, and a graph cannot
    return rate.detach().amin().item() * length / 2 >= -MAX_EXPONENT


def decay_factors(rate: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What to multiply queries and keys by, so that their products have decayed.

    Between a query and the keys before it ``e^{λ(t−s)} = e^{λ(t−m)} · e^{λ(m−s)}``, with m the middle of the sequence.

    Args:
        rate (Tensor): λ of each head, (heads,).
        length (int): Number of positions.

    Returns:
        tuple[Tensor, Tensor]: The factors of queries and of keys, each (heads, L, 1).
    """
    position = torch.arange(length, device=rate.device) - (length - 1) / 2
    exponent = rate.view(-1, 1, 1) * position.unsqueeze(-1)
    return exponent.exp(), (-exponent).exp()  # no quotient, whose gradient would be out of range
