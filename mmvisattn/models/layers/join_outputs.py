"""No output without a gradient: what a head leaves unused gets zeros.

A pyramid may start above the first map of a backbone, a head may read two maps of four. Parameters that only the other
maps depend on would have no gradient at all then, and training on several processes ends in an error that names their
numbers. With outputs joined to one node of the graph, autograd hands zeros to those that nobody uses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Join(torch.autograd.Function):
    """Identity of several tensors; autograd fills in zeros for the gradients that are not there."""

    @staticmethod
    def forward(ctx: Any, *outs: Tensor) -> tuple[Tensor, ...]:
        return tuple(out.detach() for out in outs)  # no views for autograd: a head may write into them

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


def join_outputs(outs: Sequence[Tensor], training: bool) -> tuple[Tensor, ...]:
    """The outputs of a network; in training the use of one of them gives all a gradient.

    Args:
        outs (Sequence[Tensor]): The outputs, of any shapes. Those of frozen parts stay without a gradient.
        training (bool): Whether the network is in training mode.

    Returns:
        tuple[Tensor, ...]: The same values, in the same memory.
    """
    if not training or sum(out.requires_grad for out in outs) < 2:
        return tuple(outs)
    joined = iter(_Join.apply(*(out for out in outs if out.requires_grad)))
    return tuple(next(joined) if out.requires_grad else out for out in outs)
