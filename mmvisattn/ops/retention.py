"""Retention, the operator of De-focus RetNet: attention without softmax, chunk by chunk.

After `Retentive Network <https://arxiv.org/abs/2307.08621>`_ (Sun et al., 2023).
"""

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
        # What the tokens of a chunk read of each other, and what the chunk adds to the state: (…, chunks, d, d).
        factored = decay_factors_fit(rate, chunk, fastest)
        if factored:
            q_factor, k_factor = (x.unsqueeze(1) for x in decay_factors(rate, chunk))
            q, k = q * q_factor, k * k_factor
            out = (q @ k.mT).tril_() @ v
            added = k.mT @ v
        else:
            rate = rate.view(-1, 1, 1, 1)
            position = torch.arange(chunk, device=q.device).unsqueeze(-1)
            distance = position - position.mT
            out = (q @ k.mT * (rate * distance.clamp(min=0)).exp() * (distance >= 0)) @ v
            added = (k * (rate * (chunk - 1 - position)).exp()).mT @ v
            q = q * (rate * (position + 1)).exp()

        if is_traced():  # a loop would bind the graph to the number of chunks
            out = out + q @ _states_by_product(over_chunk * added if factored else added, over_chunk)
            return out.flatten(2, 3)[:, :, :length]
        state, states = torch.zeros_like(added[:, :, 0]), []
        for part in added.unbind(2):
            states.append(state)
            # The factors of the keys decay to the middle of the chunk, and those of the queries go on from there.
            state = (state + part) * over_chunk if factored else torch.addcmul(part, state, over_chunk)
        # What the tokens read of the state, in one pass with the sum.
        out = torch.baddbmm(*(x.flatten(0, 2) for x in (out, q, torch.stack(states, 2))))
        return out.unflatten(0, v.shape[:3]).flatten(2, 3)[:, :, :length]


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
