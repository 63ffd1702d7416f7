"""A matrix product behind GELU that keeps one of its two inner maps for the backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_linear(x: Tensor, weight: Tensor, added: Tensor, dropout: float = 0.0) -> Tensor:
    """``added + dropout(gelu(x)) · weightᵀ``, whose backward computes GELU again in place of keeping what it gave.

    That is one more pass over the map for half of the memory. With dropout, and in mixed precision, it is kept.

    Args:
        x (Tensor): Tokens, (N, C).
        weight (Tensor): (D, C).
        added (Tensor): Bias, (D,), or map, (N, D).
        dropout (float): Rate at which channels of ``gelu(x)`` are dropped. Defaults to 0.

    Returns:
        Tensor: (N, D).
    """
    if dropout or torch.is_autocast_enabled(x.device.type) or not torch.is_grad_enabled():
        return _product(F.dropout(F.gelu(x), dropout) if dropout else F.gelu(x), weight, added)
    return _GeluLinear.apply(x, weight, added)


def _product(x: Tensor, weight: Tensor, added: Tensor) -> Tensor:
    return F.linear(x, weight, added) if added.ndim == 1 else torch.addmm(added, x, weight.t())


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, added: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.is_bias = added.ndim == 1
        return _product(F.gelu(x), weight, added)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_added = ctx.needs_input_grad
        return (
            torch.ops.aten.gelu_backward(grad @ weight, x) if needs_x else None,
            grad.t() @ F.gelu(x) if needs_weight else None,
            (grad.sum(0) if ctx.is_bias else grad) if needs_added else None,
        )
