"""A residual sum with a scaled GELU that keeps only what GELU is taken of."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import is_traced


def gelu_sum(x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """``x + scale · gelu(y)``, whose backward computes GELU again in place of keeping what it gave.

    Args:
        x (Tensor): Map of any shape.
        scale (Tensor): Broadcast to the shape of ``x``.
        y (Tensor): Map of the shape of ``x``.

    Returns:
        Tensor: Of the shape of ``x``.
    """
    if is_traced() or not torch.is_grad_enabled():
        return torch.addcmul(x, scale, F.gelu(y))
    return _GeluSum.apply(x, scale, y)


class _GeluSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(scale, y)
        return torch.addcmul(x, scale, F.gelu(y))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, y = ctx.saved_tensors
        needs_x, needs_scale, needs_y = ctx.needs_input_grad
        return (
            grad if needs_x else None,
            (grad * F.gelu(y)).sum_to_size(scale.shape).to(scale.dtype) if needs_scale else None,
            torch.ops.aten.gelu_backward((grad * scale).to(y.dtype), y) if needs_y else None,
        )
