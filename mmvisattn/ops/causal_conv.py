"""Convolution along a sequence that sees the current and the earlier tokens, each channel by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def causal_depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal depthwise convolution, equal to ``F.conv1d`` of the sequence with k − 1 zeros before it.

    A sum of shifted products: torch's own depthwise convolution takes a hundred times longer than its forward for the
    gradient of the weight on a CPU.

    Args:
        x (Tensor): Sequence (B, L, D).
        weight (Tensor): One kernel for each channel (D, 1, k); its last tap meets the current token.
        bias (Tensor): (D,).

    Returns:
        Tensor: (B, L, D), of the type of ``x``.
    """
    length, taps = x.shape[1], weight.shape[2]
    weight = weight[:, 0].to(x.dtype)
    x = F.pad(x, (0, 0, taps - 1, 0))
    out = torch.addcmul(bias.to(x.dtype), x[:, :length], weight[:, 0])
    for i in range(1, taps):
        out.addcmul_(x[:, i : i + length], weight[:, i])
    return out


class CausalDepthwiseConv1d(nn.Conv1d):
    """``nn.Conv1d`` with one kernel for each channel, run by :func:`causal_depthwise_conv1d`.

    Args:
        channels (int): Number of channels D.
        kernel_size (int): Number of tokens that each one sees, itself included.
    """

    bias: nn.Parameter  # there always is one

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        return causal_depthwise_conv1d(x, self.weight, self.bias)
