"""Norms that torch does not have."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.common import at_least_float32
from ...registry import MODELS


def group_rms_norm(x: Tensor, group_size: int, eps: float = 1e-6) -> Tensor:
    """Divide each group of adjacent channels by its root mean square; no affine part, in float32 at least.

    Args:
        x (Tensor): Tokens, (..., C).
        group_size (int): Channels in a group, a divisor of C.
        eps (float): Added to the mean square.

    Returns:
        Tensor: (..., C), float32 or float64.
    """
    groups = at_least_float32(x).unflatten(-1, (-1, group_size))
    # The norm reads the tokens once; their squares would be written down first.
    mean_square = torch.linalg.vector_norm(groups, dim=-1, keepdim=True).square() / group_size
    return (groups * torch.rsqrt(mean_square + eps)).flatten(-2)


@MODELS.register_module()
class LN2d(nn.LayerNorm):
    """LayerNorm over the channels of a map, at each position by itself.

    Args:
        num_channels (int): Number of channels C.
        eps (float): Added to the variance. Defaults to 1e-5.
    """

    _abbr_ = 'ln'

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
