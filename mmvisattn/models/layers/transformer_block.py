"""The block that transformers share, whatever mixes their tokens."""

from typing import Any

from timm.layers import Mlp
from torch import Tensor, nn

from .drop_path import DropPath


def init_linear(module: nn.Module) -> None:
    """Draw the weights of all linear layers from a truncated normal (0.02); biases are zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class TransformerBlock(nn.Module):
    """Token mixer and MLP, each behind a LayerNorm, with drop path and a residual sum; named as in timm.

    Args:
        dim (int): Number of channels C.
        attn (nn.Module): What mixes the tokens, (B, L, C) → (B, L, C).
        mlp_ratio (float): Width of the MLP as a multiple of ``dim``.
        drop_path_rate (float): Rate at which a sample skips a branch.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        init_linear(self)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """(B, L, C) → (B, L, C); the options are for the mixer."""
        x = x + self.drop_path(self.attn(self.norm1(x), **options))
        return x + self.drop_path(self.mlp(self.norm2(x)))
