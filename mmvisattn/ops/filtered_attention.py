"""Attention whose logits decay with distance, the operator of De-focus ViT, in linear memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .common import at_least_float32, is_exported, is_open_in_graph, is_traced, no_autocast
from .decay import MAX_EXPONENT, decay_factors, decay_factors_fit

# Queries that are computed together. A block holds this many rows of the attention map, the whole never exists.
QUERY_BLOCK = 128


def filtered_attention(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, causal: bool = True, fastest: float | Tensor | None = None
) -> Tensor:
    """``softmax(e^{λ|t−s|} · <q_t, k_s>) · v_s`` in memory linear in the length of the sequence.

    Args:
        q (Tensor): Scaled queries, (B, heads, L, d).
        k (Tensor): Keys, (B, heads, L, d).
        v (Tensor): Values, (B, heads, L, d).
        rate (Tensor | None): λ of each head, (heads,), or None for no decay.
        causal (bool): Hide keys after the query.
        fastest (float | Tensor, optional): See :func:`~mmvisattn.ops.decay.fastest_decays`. Defaults to None, to ask
            the device for it.

    Returns:
        Tensor: (B, heads, L, d).
    """
    if rate is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
    if is_traced() and not is_exported():
        if fastest is None:
            fastest = rate.detach().amin().cpu()
        # A graph cannot choose by a value. It folds a decay that surely fits, and the operator, which can, mends that.
        fitting = rate.clamp(min=-2 * MAX_EXPONENT / q.shape[-2])
        folded = folded_attention(q, k, v, fitting) if causal else None
        return torch.ops.mmvisattn.mended_attention(folded, q, k, v, rate, fastest)
    if causal and decay_factors_fit(rate, q.shape[-2], fastest):
        return folded_attention(q, k, v, rate)
    return blockwise_attention(q, k, v, rate, causal)


def folded_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """Causal :func:`filtered_attention` by torch's fused attention, the decay being part of queries and keys.

    The factors span the range of float32, which that of bfloat16 equals; in float16 attention is computed in float32.
    """
    dtype = torch.float32 if q.dtype == torch.float16 else q.dtype
    with no_autocast(q.device):
        q_factor, k_factor = decay_factors(rate, q.shape[-2])
        q, k = (q * q_factor).to(dtype), (k * k_factor).to(dtype)
        return F.scaled_dot_product_attention(q, k, v.to(dtype), is_causal=True, scale=1.0).to(v.dtype)


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


# ----------------------------------------------------------------------------------------- operators of compiled graphs


@torch.library.custom_op('mmvisattn::mended_attention', mutates_args=())
def _mended(folded: Tensor | None, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, fastest: Tensor) -> Tensor:
    """What :func:`folded_attention` gave, where the decay fits; otherwise :func:`blockwise_attention`.

    Without the former, ``folded``, attention is not causal.
    """
    if folded is None:
        return blockwise_attention(q, k, v, rate, causal=False).contiguous()
    if decay_factors_fit(rate, q.shape[-2], fastest):
        return folded.clone()  # an operator must not return what it was given
    return torch.empty_like(folded).copy_(blockwise_attention(q, k, v, rate))


@_mended.register_fake
def _mended_shape(folded: Tensor | None, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, fastest: Tensor) -> Tensor:
    return v.new_empty(v.shape) if folded is None else torch.empty_like(folded)


@torch.library.custom_op('mmvisattn::mended_attention_backward', mutates_args=())
def _mended_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, fastest: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``folded``, q, k, v and rate: either the first has all, or it has nothing."""
    if causal and decay_factors_fit(rate, q.shape[-2], fastest):
        gq, gk, gv, gr = (x.new_zeros(x.shape) for x in (q, k, v, rate))
        return grad.clone(), gq, gk, gv, gr
    return (torch.zeros_like(grad), *_blockwise_gradients(grad, q, k, v, rate, causal))


@_mended_backward.register_fake
def _mended_backward_shape(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, fastest: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gq, gk, gv, gr = (x.new_empty(x.shape) for x in (q, k, v, rate))
    return torch.empty_like(grad), gq, gk, gv, gr


def _blockwise_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, causal: bool, block: int = QUERY_BLOCK
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of :func:`blockwise_attention`, written down because autograd does not look into an operator."""
    types = [x.dtype for x in (q, k, v, rate)]
    grad, q, k, v, rate = (at_least_float32(x) for x in (grad, q, k, v, rate))
    length = q.shape[-2]
    grads = grad_q, grad_k, grad_v, grad_rate = [torch.zeros_like(x) for x in (q, k, v, rate)]
    position = torch.arange(length, device=q.device)
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = stop if causal else length
        queries, keys, values, above = q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], grad[:, :, start:stop]
        distance = position[start:stop].unsqueeze(-1) - position[:seen]  # (Q, S)
        decay = (rate.view(-1, 1, 1) * distance.abs()).exp()  # (heads, Q, S)
        similarity = queries @ keys.mT  # (B, heads, Q, S)
        logits = similarity * decay
        shares = (logits.masked_fill(distance < 0, float('-inf')) if causal else logits).softmax(-1)
        grad_v[:, :, :seen] += shares.mT @ above
        change = above @ values.mT
        change = shares * (change - (change * shares).sum(-1, keepdim=True))  # of the logits
        grad_rate += (change * logits * distance.abs()).sum((0, 2, 3))
        change = change * decay
        grad_q[:, :, start:stop] = change @ keys
        grad_k[:, :, :seen] += change.mT @ queries
    gq, gk, gv, gr = (x.to(dtype) for x, dtype in zip(grads, types))
    return gq, gk, gv, gr


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.causal = inputs[0] is not None
    ctx.save_for_backward(*inputs[1:])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    folded, *others = torch.ops.mmvisattn.mended_attention_backward(grad, *ctx.saved_tensors, ctx.causal)
    return (folded if ctx.causal else None, *others, None)


_mended.register_autograd(_gradients, setup_context=_save)
