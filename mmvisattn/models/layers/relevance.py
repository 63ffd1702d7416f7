"""Which low-resolution tokens deserve a closer look, told by what attention they receive or pay.

After `FlexAttention for Efficient High-Resolution Vision-Language Models <https://arxiv.org/abs/2407.20228>`_ (Li et
al., 2024), where the question asked of the image attends to what it is about, and a token is as relevant as the
attention it receives. An image alone asks no question, and the attention that its tokens receive from each other says
little about where objects are; that a token pays attention to other things than its neighbours says more.

Fused attention does not give its map away, and to form it would cost as much again. Both estimates stand on averages
over blocks of tokens. Nothing here passes a gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Received attention: at most so many queries a side of a block, and at least so many blocks a side of the map.
MAX_QUERY_BLOCK = 4
MIN_QUERY_BLOCKS = 8
# Contrast: blocks of keys a side of the map, unless it has fewer keys.
KEY_BLOCKS = 8

# Relevance (B, N) of queries and keys, each (B, heads, N, d).
Estimate = Callable[[Tensor, Tensor], Tensor]


def received_attention(attention: Tensor) -> Tensor:
    """The attention each key receives, summed over heads and queries: (B, heads, Q, N) → (B, N)."""
    return attention.detach().sum((1, 2))


@torch.no_grad()
def estimate_received_attention(q: Tensor, k: Tensor, grid: tuple[int, int], real: Tensor | None = None) -> Tensor:
    """Received attention from averages over blocks of queries.

    Neighbours on the grid ask similar questions, so one softmax of their mean query stands for a block. With 4×4
    blocks, which a map of 32 tokens a side has, it costs a 32nd of the map and its product with the values; smaller
    maps have smaller blocks. Every query counts, so no token gains by its position, as under sampling, where those next
    to a sampled one would.

    Args:
        q: Queries of the low-resolution tokens in raster order, (B, heads, N, d).
        k: Their keys, (B, heads, N, d).
        grid: Rows and columns of the tokens, their product N.
        real: Not used: padding asks and is asked in the attention itself.

    Returns:
        Relevance, (B, N), in float32 at least.
    """
    block = [min(MAX_QUERY_BLOCK, max(n // MIN_QUERY_BLOCKS, 1)) for n in grid]
    # At the border the average is over the queries that exist.
    pooled = F.avg_pool2d(_as_maps(q, grid), block, ceil_mode=True, count_include_pad=False)
    pooled = pooled.flatten(2).transpose(1, 2).unflatten(0, q.shape[:2])  # (B, heads, blocks, d)
    return received_attention(_softmax(pooled, k, -1))


def attention_contrast(attention: Tensor, grid: tuple[int, int], real: Tensor | None = None) -> Tensor:
    """How much the attention that a token pays differs from what is paid around it.

    The sum over heads and keys of the distance from the mean over 3×3 tokens.

    Args:
        attention: The attention each query pays, (B, heads, keys, N): queries last.
        grid: Rows and columns of the queries, their product N.
        real: False for tokens that come of padding, boolean, (rows, columns) or (B, rows, columns); they
            are no neighbours.

    Returns:
        Relevance, (B, N).
    """
    maps = attention.detach().flatten(1, 2).unflatten(2, grid)  # (B, heads·keys, rows, columns)
    if real is None:
        around = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
    else:
        weight = real.to(maps.dtype).unsqueeze(-3)
        around = F.avg_pool2d(maps * weight, 3, 1, 1) / F.avg_pool2d(weight, 3, 1, 1).clamp(min=1e-6)
    return (maps - around).abs().sum(1).flatten(1)


@torch.no_grad()
def estimate_attention_contrast(q: Tensor, k: Tensor, grid: tuple[int, int], real: Tensor | None = None) -> Tensor:
    """Contrast of the attention that is paid to the mean keys of 8×8 blocks.

    Args:
        q: Queries of the low-resolution tokens in raster order, (B, heads, N, d).
        k: Their keys, (B, heads, N, d).
        grid: Rows and columns of the tokens, their product N.
        real: False for tokens that come of padding, boolean, (rows, columns) or (B, rows, columns); None if there
            are none.

    Returns:
        Relevance, (B, N), in float32 at least.
    """
    pooled = F.adaptive_avg_pool2d(_as_maps(k, grid), [min(KEY_BLOCKS, n) for n in grid])
    pooled = pooled.flatten(2).transpose(1, 2).unflatten(0, k.shape[:2])  # (B, heads, blocks, d)
    return attention_contrast(_softmax(pooled, q, -2), grid, real)


ESTIMATES: dict[str, Callable[..., Tensor]] = {
    'contrast': estimate_attention_contrast,
    'received': estimate_received_attention,
}


def _as_maps(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, heads, N, d) → (B·heads, d, rows, columns)."""
    return x.flatten(0, 1).transpose(1, 2).unflatten(2, grid)


def _softmax(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """``softmax(a bᵀ / √d)``, in float32 at least: (B, heads, m, d) and (B, heads, N, d) → (B, heads, m, N)."""
    logits = (a * a.shape[-1] ** -0.5) @ b.mT
    return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).softmax(dim)
