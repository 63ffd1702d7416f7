"""Sigmoid and softmax focal loss (arXiv 1708.02002) as ``mmcv._ext`` offers them.

Compiled mmcv has them on CUDA alone. Logarithms are taken of the logits here, so that very sure predictions keep
their loss and gradient in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import widen


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of every logit to ``output``.

    Args:
        input (Tensor): (N, C) logits.
        target (Tensor): (N,) class of each row; a value outside [0, C) is background.
        weight (Tensor): (C,) factor of the rows of each class, background rows keep 1; empty for none.
        output (Tensor): (N, C) buffer.
        gamma (float): Focusing exponent.
        alpha (float): Weight of the positives, 1 - alpha of the negatives.
    """
    x = widen(input)
    p = x.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * F.logsigmoid(x)
    negative = -(1 - alpha) * p.pow(gamma) * F.logsigmoid(-x)
    output.copy_(torch.where(_is_class(target, x), positive, negative) * _row_weight(weight, target, x))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of every loss by its logit to ``grad_input``; arguments as in the forward function."""
    x = widen(input)
    p, q = x.sigmoid(), (-x).sigmoid()
    positive = -alpha * q.pow(gamma) * (q - gamma * p * F.logsigmoid(x))
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * q * F.logsigmoid(-x) - p)
    grad_input.copy_(torch.where(_is_class(target, x), positive, negative) * _row_weight(weight, target, x))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of every row to ``output``.

    Args:
        input (Tensor): (N, C) probabilities (after the softmax).
        target (Tensor): (N,) class of each row; rows with a negative one are ignored.
        weight (Tensor): (C,) factor of the rows of each class; empty for none.
        output (Tensor): (N,) buffer.
        gamma (float): Focusing exponent.
        alpha (float): Factor of the whole loss.
    """
    p, valid = _probability(input, target)
    loss = -alpha * (1 - p).pow(gamma) * p.log()
    output.copy_(loss.where(valid, loss.new_zeros(())) * _row_weight(weight, target, p)[:, 0])


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of every row's loss by its logits to ``grad_input`` (N, C); ``buff`` is (N,) scratch."""
    p, valid = _probability(input, target)
    rest = (1 - p).clamp(min=torch.finfo(p.dtype).tiny)
    slope = alpha * (gamma * rest.pow(gamma - 1) * p * p.log() - rest.pow(gamma))
    slope = slope.where(valid, slope.new_zeros(())) * _row_weight(weight, target, p)[:, 0]
    buff.copy_(slope)
    softmax = input.to(p.dtype)
    grad_input.copy_(slope[:, None] * (_is_class(target, softmax).to(p.dtype) - softmax))


def _is_class(target: Tensor, like: Tensor) -> Tensor:
    return target[:, None] == torch.arange(like.size(1), device=like.device)


def _probability(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each row's own class, away from 0, and which rows have one."""
    p = widen(softmax).gather(1, target.clamp(min=0)[:, None])[:, 0]
    return p.clamp(min=torch.finfo(p.dtype).tiny), target >= 0


def _row_weight(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Factor of each row, (N, 1)."""
    if not weight.numel():
        return like.new_ones(()).expand(len(target), 1)
    weight = weight.to(like.dtype)
    known = (target >= 0) & (target < len(weight))
    return weight[target.clamp(0, len(weight) - 1)].where(known, weight.new_ones(()))[:, None]
