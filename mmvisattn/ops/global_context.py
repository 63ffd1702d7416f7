"""Weighted global context of FCViT (https://arxiv.org/abs/2212.12552): each position by its similarity to the mean."""

from collections.abc import Callable

import torch
from torch import Tensor

from .common import at_least_float32


def global_context(x: Tensor, bottleneck: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """``x + s · bottleneck(mean)``, with the similarity ``s = norm(<x, mean> / √d) · weight + bias`` of each head.

    ``norm`` makes mean 0 and standard deviation 1 over all heads and positions of a map. The map is read once for its
    mean, once for the similarity, and once for the sum.

    Args:
        x (Tensor): Map (B, C, H, W), of any memory format.
        bottleneck (Callable[[Tensor], Tensor]): What all positions receive, from the mean of the map: (B, C) → (B, C).
        weight (Tensor): Scale of each head's similarity, (heads,), a number that divides C.
        bias (Tensor): What is added to it, (heads,).

    Returns:
        Tensor: (B, C, H, W), of the type of ``x``, in channels-last memory.
    """
    B, C, H, W = x.shape
    num_heads = len(weight)
    head_dim = C // num_heads
    tokens = x.permute(0, 2, 3, 1).reshape(B, H * W, C)
    pooled = tokens.mean(1)  # (B, C)

    heads = head_blocks(num_heads, head_dim, x)
    similarity = global_similarity(tokens, pooled, heads, weight, bias)

    # s[h]·v[h] likewise, and added to x on the way.
    value = (bottleneck(pooled).unsqueeze(-1) * heads).transpose(1, 2)  # (B, heads, C)
    out = torch.baddbmm(tokens, similarity.to(tokens.dtype), value.to(tokens.dtype))
    return out.view(B, H, W, C).permute(0, 3, 1, 2)


def head_blocks(num_heads: int, head_dim: int, like: Tensor) -> Tensor:
    """Which channels belong to which head, (C, heads), of the type and on the device of another tensor."""
    return torch.eye(num_heads, dtype=like.dtype, device=like.device).repeat_interleave(head_dim, 0)


def global_similarity(tokens: Tensor, pooled: Tensor, heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """How similar each position is to the mean of the map, by which :func:`global_context` weights it.

    Args:
        tokens (Tensor): Map, (B, H·W, C).
        pooled (Tensor): Its mean, (B, C).
        heads (Tensor): See :func:`head_blocks`, (C, heads).
        weight (Tensor): Scale of each head's similarity, (heads,).
        bias (Tensor): What is added to it, (heads,).

    Returns:
        Tensor: (B, H·W, heads), in float32 at least.
    """
    scale = (heads.shape[0] // heads.shape[1]) ** -0.5
    # <x, p> within each head is one product with p laid out block-diagonally, (B, C, heads): x is read once.
    similarity = at_least_float32(torch.bmm(tokens, (pooled * scale).unsqueeze(-1) * heads))
    std, mean = torch.std_mean(similarity, (1, 2), keepdim=True)
    return (similarity - mean) / (std + 1e-5) * weight + bias
