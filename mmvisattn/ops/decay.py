"""Decay of attention with distance, ``e^{λ(t−s)}``, as factors of queries and keys."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .common import is_exported, is_traced

# Largest exponent of a factor of the decay. A masked product of query and key holds two of them, and float32 ends at
# e^88: ten million are left for query and key themselves.
MAX_EXPONENT = 36.0


def fastest_decays(rates: Sequence[Tensor | None]) -> Sequence[float | Tensor | None]:
    """The fastest decay of each of several layers, with one wait for the device in place of one a layer.

    Args:
        rates (Sequence[Tensor | None]): λ of each head of each layer, (heads,), or None for no decay.

    Returns:
        Sequence[float | Tensor | None]: The smallest λ of each layer, for :func:`decay_factors_fit`. Where the compiler
        records a graph a tensor () on the CPU; None where values cannot be asked for, in an exported graph or on
        ``meta``, and where there is no decay.
    """
    known = [rate.detach().amin() for rate in rates if rate is not None and rate.device.type != 'meta']
    if len(known) < len(rates) or not known or is_exported():
        return [None] * len(rates)
    fastest = torch.stack(known)
    return fastest.cpu().unbind() if is_traced() else fastest.tolist()


def decay_factors_fit(rate: Tensor, length: int, fastest: float | Tensor | None = None) -> bool:
    """Whether :func:`decay_factors` stay in the range of float32, which is not asked where a graph is recorded.

    Args:
        rate (Tensor): λ of each head, (heads,).
        length (int): Number of positions.
        fastest (float | Tensor, optional): The smallest λ, if it is known already. Defaults to None, to ask the device.
    """
    if is_traced() or rate.device.type == 'meta':
        return False  # the answer depends on a value, and a graph cannot
    return float(rate.detach().amin() if fastest is None else fastest) * length / 2 >= -MAX_EXPONENT


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
