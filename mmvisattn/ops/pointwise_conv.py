"""Convolution with a 1×1 kernel, as the matrix product that it is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import is_traced


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1×1 convolution, equal to ``F.conv2d(x, weight, bias)``.

    With the channels innermost it is a matrix product of all positions by the kernel, forward and backward, which on a
    CPU is faster: for a single image and thread torch's convolution goes by way of a copy in another layout.

    Args:
        x (Tensor): Input (B, C, H, W), of any memory format.
        weight (Tensor): Kernel (D, C, 1, 1).
        bias (Tensor, optional): (D,). Defaults to None.

    Returns:
        Tensor: (B, D, H, W), in the memory format of ``x``.
    """
    if x.device.type != 'cpu' or is_traced() or not x.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class PointwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a 1×1 kernel, run by :func:`pointwise_conv2d`.

    Args:
        in_channels (int): Number of channels that come in.
        out_channels (int): Number of channels that go out.
    """

    bias: nn.Parameter  # there always is one

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H, W)."""
        return pointwise_conv2d(x, self.weight, self.bias)
