"""Attention over all low-resolution tokens and a few selected high-resolution tokens.

After `FlexAttention for Efficient High-Resolution Vision-Language Models <https://arxiv.org/abs/2407.20228>`_ (Li et
al., 2024); it has nothing to do with PyTorch's ``flex_attention``. Keys and values of the high-resolution tokens have
projections of their own, W'. With M of them beside N low-resolution tokens a layer costs as (N + M)², whatever the
size of the high-resolution map.
"""

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from ...ops.common import is_plain
from .drop_path import DropPath
from .rotary import turn_pairs
from .transformer_block import init_linear


def hierarchical_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_high: Tensor | None = None,
    v_high: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``softmax(Q [K; K']ᵀ / √d) [V; V']`` with one softmax over both resolutions.

    Args:
        q (Tensor): Queries, (B, heads, Q, d).
        k (Tensor): Keys of the low-resolution tokens, (B, heads, N, d).
        v (Tensor): Their values, (B, heads, N, d).
        k_high (Tensor, optional): Keys of the high-resolution tokens, (B, heads, M, d); None for plain attention.
        v_high (Tensor, optional): Their values, (B, heads, M, d).
        mask (Tensor, optional): True where a query may look at a key, boolean, broadcast to (B, heads, Q, N + M). Every
            query must have a key to look at.

    Returns:
        Tensor: (B, heads, Q, d).
    """
    if k_high is not None and v_high is not None:
        k, v = torch.cat([k, k_high], 2), torch.cat([v, v_high], 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def axial_angles(grid: tuple[int, int], step: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary angles by row and column, so that attention sees how far apart tokens of two resolutions are.

    Args:
        grid (tuple[int, int]): Rows and columns of the tokens.
        step (int): Side of a token, in tokens of the finest grid; it is the centre of a token that counts.
        head_dim (int): Channels of a head, a multiple of 4: half of them turn with the row, half with the column.
        device (torch.device): Where to put the angles.

    Returns:
        Tensor: (rows, columns, head_dim / 2), float32.
    """
    bands = 10000.0 ** (-torch.arange(0, head_dim, 4, device=device) / head_dim)  # (head_dim / 4,)
    rows, columns = ((torch.arange(n, device=device) + 0.5).mul(step).unsqueeze(-1) * bands for n in grid)
    return torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], -1)


def rotate_by_angles(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of adjacent channels: (B, heads, L, d) by (B or 1, L, d / 2), in float32 at least."""
    angles = angles.repeat_interleave(2, -1)[:, None]
    return turn_pairs(x, angles.cos(), angles.sin()).to(x.dtype)


class HierarchicalAttention(nn.Module):
    """Self-attention of low-resolution tokens, and of selected high-resolution tokens beside them.

    Both ask with the same projection W_Q. Named as timm's attention, ``kv_high`` being new.

    Args:
        dim (int): Number of channels C.
        num_heads (int): Number of heads.
        high_res (bool): Have the projections W' of high-resolution keys and values; they start as copies of W.
    """

    def __init__(self, dim: int, num_heads: int, high_res: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.kv_high = nn.Linear(dim, 2 * dim) if high_res else None
        init_linear(self)
        if high_res:
            self.copy_to_high()

    @torch.no_grad()
    def copy_to_high(self) -> None:
        """Let W' be W."""
        assert self.kv_high is not None
        self.kv_high.weight.copy_(self.qkv.weight[self.dim :])
        self.kv_high.bias.copy_(self.qkv.bias[self.dim :])

    def project(self, x: Tensor, high_res: bool, angles: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, L, d), of tokens (B, L, C) of one resolution."""
        if high_res:
            assert self.kv_high is not None
            if is_plain(self.qkv, nn.Linear) and is_plain(self.kv_high, nn.Linear):
                weight = torch.cat([self.qkv.weight[: self.dim], self.kv_high.weight])
                bias = torch.cat([self.qkv.bias[: self.dim], self.kv_high.bias])
                x = F.linear(x, weight, bias)
            else:
                x = torch.cat([self.qkv(x)[..., : self.dim], self.kv_high(x)], -1)
        else:
            x = self.qkv(x)
        q, k, v = x.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × (B, heads, L, d)
        return (q, k, v) if angles is None else (rotate_by_angles(q, angles), rotate_by_angles(k, angles), v)

    def forward(
        self,
        x: Tensor,
        context: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend among tokens of one resolution, and to keys and values that were kept of the other.

        Args:
            x (Tensor): Tokens, (B, L, C).
            context (tuple[Tensor, Tensor], optional): Keys and values of the other resolution, each (B, heads, N, d).
            mask (Tensor, optional): True where a token may be looked at, the others' first, (B, N + L).
            angles (Tensor, optional): Rotary angles, (B or 1, L, d / 2); None for no rotation.

        Returns:
            tuple[Tensor, tuple[Tensor, Tensor]]: The output (B, L, C), and the tokens' own keys and values.
        """
        q, k, v = self.project(x, False, angles)
        mask = None if mask is None else mask[:, None, None]
        if context is None:
            x = hierarchical_attention(q, k, v, mask=mask)
        else:
            x = hierarchical_attention(q, *context, k, v, mask)
        return self.proj(x.transpose(1, 2).flatten(2)), (k, v)

    def forward_both(self, x: Tensor, num_low: int, mask: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        """Attend among tokens of both resolutions.

        Args:
            x (Tensor): Tokens, (B, N + M, C): the low-resolution ones, then the high-resolution ones.
            num_low (int): N.
            mask (Tensor, optional): True where a token may be looked at, (B, N + M).
            angles (Tensor, optional): Rotary angles, (B or 1, N + M, d / 2); None for no rotation.

        Returns:
            Tensor: (B, N + M, C).
        """
        parts = (None, None) if angles is None else (angles[:, :num_low], angles[:, num_low:])
        q, k, v = self.project(x[:, :num_low], False, parts[0])
        q_high, k_high, v_high = self.project(x[:, num_low:], True, parts[1])
        x = hierarchical_attention(
            torch.cat([q, q_high], 2), k, v, k_high, v_high, None if mask is None else mask[:, None, None]
        )
        return self.proj(x.transpose(1, 2).flatten(2))


class HierarchicalBlock(nn.Module):
    """Hierarchical attention and MLP, each behind a LayerNorm, with drop path and a residual sum; named as in timm.

    ``set_alpha`` blends the plain path (low-resolution tokens attend to each other, high-resolution ones stay as they
    are) into the hierarchical one while training; evaluation takes the latter, as the paper's release does.

    Args:
        dim (int): Number of channels C.
        num_heads (int): Number of heads.
        mlp_ratio (float): Width of the MLP as a multiple of ``dim``.
        drop_path_rate (float): Rate at which a sample skips a branch.
        high_res (bool): Take high-resolution tokens; otherwise a plain transformer block.
    """

    alpha: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        high_res: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = HierarchicalAttention(dim, num_heads, high_res)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        init_linear(self.mlp)
        # A tensor, so that a compiled network does not depend on the value; it follows from the progress of training.
        self.register_buffer('alpha', torch.ones(()), persistent=False)
        self.blending = False

    def set_alpha(self, alpha: float) -> None:
        """Set the share of the hierarchical path, from 0 (the plain path alone) to 1."""
        self.alpha.fill_(alpha)
        self.blending = alpha < 1

    def forward(
        self,
        x: Tensor,
        context: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Refine tokens of one resolution; for the arguments see :meth:`HierarchicalAttention.forward`.

        Args:
            x (Tensor): Tokens, (B, L, C).
            context (tuple[Tensor, Tensor], optional): Each (B, heads, N, d).
            mask (Tensor, optional): (B, N + L).
            angles (Tensor, optional): (B or 1, L, d / 2).

        Returns:
            tuple[Tensor, tuple[Tensor, Tensor]]: The tokens (B, L, C), and their keys and values, each (B, heads, L,
            d).
        """
        y, own = self.attn(self.norm1(x), context, mask, angles)
        x = x + self.drop_path(y)
        del y  # the memory is at its peak inside the MLP
        return x + self.drop_path(self.mlp(self.norm2(x))), own

    def forward_both(self, x: Tensor, num_low: int, mask: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        """Refine tokens of both resolutions; for the arguments see :meth:`HierarchicalAttention.forward_both`.

        Args:
            x (Tensor): Tokens, (B, N + M, C): the low-resolution ones, then the high-resolution ones.
            num_low (int): N.
            mask (Tensor, optional): (B, N + M).
            angles (Tensor, optional): (B or 1, N + M, d / 2).

        Returns:
            Tensor: (B, N + M, C).
        """
        blend = self.training and self.blending
        normed = self.norm1(x)
        y = self.attn.forward_both(normed, num_low, mask, angles)
        if blend:
            plain, _ = self.attn(
                normed[:, :num_low],
                None,
                None if mask is None else mask[:, :num_low],
                None if angles is None else angles[:, :num_low],
            )
            y = self._scale_high(y, num_low)
            y = torch.cat([plain + self.alpha * (y[:, :num_low] - plain), y[:, num_low:]], 1)
        x = x + self.drop_path(y)
        del normed, y
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(self._scale_high(y, num_low) if blend else y)

    def _scale_high(self, y: Tensor, num_low: int) -> Tensor:
        return torch.cat([y[:, :num_low], self.alpha * y[:, num_low:]], 1)
