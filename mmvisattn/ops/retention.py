"""Retention, the operator of De-focus RetNet: attention without softmax, chunk by chunk.

After `Retentive Network <https://arxiv.org/abs/2307.08621>`_ (Sun et al., 2023).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import at_least_float32, is_open, is_traced, no_autocast
from .decay import decay_factors, decay_factors_fit

# Tokens that are computed together: within a chunk pairwise, between chunks through a state.
CHUNK = 128


def chunkwise_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor | None,
    chunk: int = CHUNK,
    fastest: float | Tensor | None = None,
) -> Tensor:
    """``y_t = Σ_{s≤t} <q_t, k_s> e^{λ(t−s)} v_s``, in time and memory linear in the length of the sequence.

    The decay is made part of queries and keys where its factors stay in range; elsewhere all exponents are negative or
    zero. The state is in float32 at least, under autocast as well.

    Args:
        q (Tensor): Scaled queries, (B, heads, L, d).
        k (Tensor): Keys, (B, heads, L, d).
        v (Tensor): Values, (B, heads, L, d).
        rate (Tensor | None): λ of each head, (heads,), negative, or None for no decay.
        chunk (int): Tokens in a chunk.
        fastest (float | Tensor, optional): See :func:`~mmvisattn.ops.decay.fastest_decays`; compiled graphs decay pair
            by pair, which their fusion makes as fast, and do not read it. Defaults to None, to ask the device for it.

    Returns:
        Tensor: (B, heads, L, d), float32 or float64.
    """
    with no_autocast(q.device):
        rate = at_least_float32(q).new_zeros(q.shape[1]) if rate is None else rate
        length = q.shape[-2]
        chunk = chunk if is_open(length) else min(chunk, length)
        q, k, v = (_split(at_least_float32(x), chunk) for x in (q, k, v))  # (B, heads, chunks, chunk, d)
        over_chunk = (rate.view(-1, 1, 1) * chunk).exp()  # what is left after a chunk
        if decay_factors_fit(rate, chunk, fastest):  # never where a graph is recorded
            q_factor, k_factor = (x.unsqueeze(1) for x in decay_factors(rate, chunk))
            out = _Factored.apply(q * q_factor, k * k_factor, v, over_chunk)
        else:
            out = _pair_by_pair(q, k, v, rate.view(-1, 1, 1, 1), over_chunk)
        return out.flatten(2, 3)[:, :, :length]


class _Factored(torch.autograd.Function):
    """Chunks whose queries and keys hold the decay.

    The backward is written out: autograd would add up the gradients of queries, keys and values from two products each
    in passes of their own, here the second product adds to the first.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, over_chunk: Tensor) -> Tensor:
        out, scores, states = _factored(q, k, v, over_chunk)
        ctx.save_for_backward(q, k, v, over_chunk, scores, states)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, over_chunk, scores, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            inputs, needed = (q, k, v, over_chunk), ctx.needs_input_grad
            of = [x for x, needs in zip(inputs, needed) if needs]
            grads = iter(torch.autograd.grad(_factored(*inputs)[0], of, grad, create_graph=True))
            return tuple(next(grads) if needs else None for needs in needed)
        grad_scores = (grad @ v.mT).tril_()
        grad_read = (q.mT @ grad).unbind(2)  # of what each chunk reads, the state before it
        grad_states = torch.stack(_carry(grad_read[::-1], over_chunk)[::-1], 2)  # of what each chunk adds
        grad_over_chunk = None
        if ctx.needs_input_grad[3]:
            # A state is a sum · over_chunk, and so is its gradient, the other way round. Both may be near the end of
            # the range of float32, so they are not multiplied by each other as they are.
            sums = states[:, :, 1:] / over_chunk.unsqueeze(1)
            grad_over_chunk = (sums * grad_states[:, :, :-1]).sum((0, 2, 3, 4)).view_as(over_chunk) / over_chunk
        return (
            _add_product(grad_scores @ k, grad, states.mT),
            _add_product(grad_scores.mT @ q, v, grad_states.mT),
            _add_product(scores.mT @ grad, k, grad_states),
            grad_over_chunk,
        )


def _factored(q: Tensor, k: Tensor, v: Tensor, over_chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`_Factored` gives, the scores within chunks and the states before them."""
    scores = (q @ k.mT).tril_()
    # The factors of the keys decay to the middle of the chunk, and those of the queries go on from there.
    states = torch.stack(_carry((k.mT @ v).unbind(2), over_chunk), 2)
    return _add_product(scores @ v, q, states), scores, states


def _carry(parts: Sequence[Tensor], over_chunk: Tensor) -> list[Tensor]:
    """The states before each part, where a state is what was before and the part, decayed."""
    state, states = torch.zeros_like(parts[0]), []
    for part in parts:
        states.append(state)
        state = (state + part) * over_chunk
    return states


def _pair_by_pair(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, over_chunk: Tensor) -> Tensor:
    """Chunks in which all exponents are negative or zero, for any decay."""
    position = torch.arange(q.shape[-2], device=q.device).unsqueeze(-1)
    distance = position - position.mT
    out = (q @ k.mT * (rate * distance.clamp(min=0)).exp() * (distance >= 0)) @ v
    added = (k * (rate * (q.shape[-2] - 1 - position)).exp()).mT @ v
    q = q * (rate * (position + 1)).exp()
    if is_traced():  # a loop would bind the graph to the number of chunks
        return out + q @ _states_by_product(added, over_chunk)
    state, states = torch.zeros_like(added[:, :, 0]), []
    for part in added.unbind(2):
        states.append(state)
        state = torch.addcmul(part, state, over_chunk)
    return _add_product(out, q, torch.stack(states, 2))


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``out + left @ right`` in one pass, (B, heads, chunks, ·, ·)."""
    added = torch.baddbmm(*(x.flatten(0, 2) for x in (out, left, right)))
    return added.unflatten(0, out.shape[:3])


def _split(x: Tensor, chunk: int) -> Tensor:
    padding = -x.shape[-2] % chunk
    return (F.pad(x, (0, 0, 0, padding)) if is_open(padding) or padding else x).unflatten(-2, (-1, chunk))


def _states_by_product(added: Tensor, over_chunk: Tensor) -> Tensor:
    """The states before each chunk as one product over chunks, for graphs that are to serve any number of them.

    Args:
        added (Tensor): What each chunk adds to the state, (B, heads, chunks, d, d).
        over_chunk (Tensor): What is left of a state after a chunk, (heads, 1, 1).

    Returns:
        Tensor: (B, heads, chunks, d, d).
    """
    number = torch.arange(added.shape[2], device=added.device)
    between = number.unsqueeze(-1) - 1 - number  # chunks from one to the other, (chunks, chunks)
    left = over_chunk ** between.clamp(min=0) * (between >= 0)  # (heads, chunks, chunks)
    return (left @ added.flatten(3)).unflatten(3, added.shape[3:])
