"""Attention whose logits decay with distance, the operator of De-focus ViT, in linear memory."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .common import is_exported, is_open_in_graph
from .decay import decay_factors, decay_factors_fit

# Queries that are computed together. A block holds this many rows of the attention map, the whole never exists.
QUERY_BLOCK = 128


def filtered_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, causal: bool = True) -> Tensor:
    """``softmax(e^{λ|t−s|} · <q_t, k_s>) · v_s`` in memory linear in the length of the sequence.

    Args:
        q (Tensor): Scaled queries, (B, heads, L, d).
        k (Tensor): Keys, (B, heads, L, d).
        v (Tensor): Values, (B, heads, L, d).
        rate (Tensor | None): λ of each head, (heads,), or None for no decay.
        causal (bool): Hide keys after the query.

    Returns:
        Tensor: (B, heads, L, d).
    """
    if rate is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
    if causal and decay_factors_fit(rate, q.shape[-2], q.dtype):
        return folded_attention(q, k, v, rate)
    return blockwise_attention(q, k, v, rate, causal)


def folded_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """Causal :func:`filtered_attention` by torch's fused attention, the decay being part of queries and keys."""
    q_factor, k_factor = decay_factors(rate, q.shape[-2])
    q, k = (q * q_factor).to(q.dtype), (k * k_factor).to(k.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def attend(q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, start: int, causal: bool) -> Tensor:
    """Attention of some queries whose logits decay with distance: ``softmax(e^{λ|t−s|} · <q_t, k_s>) · v_s``.

    Args:
        q (Tensor): Scaled queries at the positions from ``start`` on, (B, heads, Q, d).
        k (Tensor): Keys at the positions from 0 on, (B, heads, S, d).
        v (Tensor): Values of the same positions, (B, heads, S, d).
        rate (Tensor | None): λ of each head, (heads,), or None for no decay.
        start (int): Position of the first query.
        causal (bool): Hide keys after the query.

    Returns:
        Tensor: (B, heads, Q, d).
    """
    own, others = (torch.arange(x.shape[-2], device=q.device) for x in (q, k))
    distance = (own + start).unsqueeze(-1) - others  # (Q, S)
    logits = q @ k.mT
    if rate is not None:
        logits = logits * (rate.view(-1, 1, 1) * distance.abs()).exp()
    if causal:
        logits = logits.masked_fill(distance < 0, float('-inf'))
    return logits.softmax(-1).to(v.dtype) @ v


def blockwise_attention(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, causal: bool = True, block: int = QUERY_BLOCK
) -> Tensor:
    """:func:`attend` for all queries, block by block, each computed again in the backward.

    Memory grows with the length of the sequence and not with its square. Fused attention does not serve any decay: it
    adds to the logits, and the filter multiplies them.

    Args:
        q (Tensor): Scaled queries, (B, heads, L, d).
        k (Tensor): Keys, (B, heads, L, d).
        v (Tensor): Values, (B, heads, L, d).
        rate (Tensor | None): λ of each head, (heads,), or None for no decay.
        causal (bool): Hide keys after the query; blocks of keys that no query of a block sees are skipped.
        block (int): Queries in a block.

    Returns:
        Tensor: (B, heads, L, d).
    """
    length = q.shape[-2]
    if is_open_in_graph(length):  # the number of blocks follows from the size, and a graph has one number
        bounds = [(0, length)]
    else:
        bounds = [(start, min(start + block, length)) for start in range(0, length, block)]
    outs = []
    for start, stop in bounds:
        seen = stop if causal else length
        args = (q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], rate, start, causal)
        recompute = torch.is_grad_enabled() and not is_exported()
        outs.append(checkpoint(attend, *args, use_reentrant=False) if recompute else attend(*args))
    return torch.cat(outs, dim=-2)
