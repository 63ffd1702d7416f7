"""Measures of over-focus: how much of a sequence a network relies on, layer by layer, trained or not.

After `De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_: maps are gradients of the norm of a token, and
so serve softmax, retention, scan and convolution alike.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def effective_share(weights: Tensor, base: Tensor | None = None) -> Tensor:
    """Share of the tokens that weights spread over: exp(entropy) / L, from 1 / L (one token) to 1 (all alike).

    With a base it is ``exp(−KL(weights ‖ base))``, 1 where weights are spread as the base is; a uniform base gives the
    above.

    Args:
        weights (Tensor): Non-negative weights of any sum, (..., L).
        base (Tensor, optional): Weights of any sum, broadcast to (..., L), positive wherever the others are.
            Defaults to None, uniform.

    Returns:
        Tensor: (...), zero where all weights are.
    """
    share = _normalised(weights)
    base = torch.ones_like(share) if base is None else base
    divergence = (torch.xlogy(share, share) - torch.xlogy(share, _normalised(base))).sum(-1)
    return (-divergence).exp() * (weights.sum(-1) > 0)


def top_mass(weights: Tensor, share: float = 0.05) -> Tensor:
    """What the largest weights have of the sum: those of ``share`` of the tokens, rounded up to whole tokens.

    Args:
        weights (Tensor): Non-negative weights of any sum, (..., L).
        share (float): Share of the tokens, above 0 and up to 1. Defaults to 0.05.

    Returns:
        Tensor: (...), from ``share`` (all alike) to 1; zero where all weights are.
    """
    count = math.ceil(share * weights.shape[-1])
    return _normalised(weights).topk(count, dim=-1).values.sum(-1)


def token_gradients(target: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """Norm over the channels of the gradient of a target with respect to the tokens that enter each layer.

    Of the norm of one token after the last layer, ``tokens[:, t].norm(dim=-1)``, that is its *receptive field*; of the
    loss, the *gradient map*.

    Args:
        target (Tensor): What to differentiate; summed, so that of values (B,) each image has its own gradient.
        layers (Sequence[Tensor]): Tokens (B, L, C) that enter a layer, of the graph of the target.

    Returns:
        list[Tensor]: (B, L) for each layer; zeros where the target does not depend on it.
    """
    grads = torch.autograd.grad(target.sum(), list(layers), retain_graph=True, materialize_grads=True)
    return [grad.norm(dim=-1) for grad in grads]


def attention_map(
    mix: Callable[[Tensor], Tensor], x: Tensor, queries: Sequence[int], groups: int = 1, chunk: int = 16
) -> Tensor:
    """How much each token counts for others, whatever mixes them: ``‖∂‖mix(x)_q‖ / ∂x_s‖``, zero for s = q.

    Args:
        mix (Callable[[Tensor], Tensor]): What mixes the tokens, (B, L, C) → (B, L, D), each image by itself.
        x (Tensor): Tokens, (B, L, C).
        queries (Sequence[int]): The positions q.
        groups (int): Groups of adjacent channels among the D, such as heads, each of which has a map. Defaults to 1.
        chunk (int): Queries that are computed together, each with a copy of the tokens. Defaults to 16.

    Returns:
        Tensor: (B, groups, Q, L).
    """
    batch, length, _ = x.shape
    maps = []
    for group in range(groups):
        rows = []
        for start in range(0, len(queries), chunk):
            asked = torch.as_tensor(queries[start : start + chunk], device=x.device)
            with torch.enable_grad():
                copies = x.detach().repeat(len(asked), 1, 1).requires_grad_()  # (Q·B, L, C)
                out = mix(copies).unflatten(0, (len(asked), batch)).unflatten(-1, (groups, -1))
                target = out[torch.arange(len(asked), device=x.device), :, asked, group].norm(dim=-1)
                (row,) = token_gradients(target, [copies])
            row = row.unflatten(0, (len(asked), batch)).transpose(0, 1)  # (B, Q, L)
            own = torch.arange(length, device=x.device) == asked[:, None]
            rows.append(row.masked_fill(own, 0))
        maps.append(torch.cat(rows, 1))
    return torch.stack(maps, 1)


def before(projection: nn.Module, mix: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a mixer makes of tokens before its last projection, where heads lie side by side.

    It is the ``mix`` to give to :func:`attention_map` for maps of single heads.

    Args:
        projection (nn.Module): The last projection, a part of the mixer.
        mix (Callable[[Tensor], Tensor]): The mixer, (B, L, C) → (B, L, C).

    Returns:
        Callable[[Tensor], Tensor]: (B, L, C) → (B, L, D), what the projection is given.
    """

    def mix_heads(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            mix(x)
        finally:
            handle.remove()
        return seen[0]

    return mix_heads


def received(attention: Tensor) -> Tensor:
    """What each token receives of the attention of all queries, each of which gives as much.

    Args:
        attention (Tensor): Map, (..., Q, L), of any scale.

    Returns:
        Tensor: (..., L), of sum 1; queries that attend to nothing are left out.
    """
    return _normalised(_normalised(attention).sum(-2))


def mean_received(queries: Sequence[int], length: int, causal: bool) -> Tensor:
    """:func:`received` where each query attends to all others alike, or to all before it.

    Early tokens have more that look back at them: what a causal network gives them beyond this is its own doing. It is
    the ``base`` to give to :func:`effective_share`.

    Args:
        queries (Sequence[int]): Positions of the queries.
        length (int): Number of tokens L.
        causal (bool): Whether queries see the tokens before them alone.

    Returns:
        Tensor: (L,), of sum 1; zero where no query sees the token.
    """
    position = torch.arange(length)
    asked = torch.as_tensor(queries)[:, None]
    return received((position < asked if causal else position != asked).double())


def diversity(attention: Tensor) -> Tensor:
    """How differently groups (heads, channels) attend: their Jensen–Shannon divergence over log(groups).

    Args:
        attention (Tensor): Maps, (..., groups, Q, L), of any scale.

    Returns:
        Tensor: (...), the mean over queries, from 0 (all alike) to 1 (no token in common); queries to which a group
        attends with nothing are left out.
    """
    groups = attention.shape[-3]
    if groups == 1:
        return attention.new_zeros(attention.shape[:-3])
    share = _normalised(attention)
    mean = share.mean(-3)
    divergence = (torch.xlogy(share, share).sum(-1).mean(-2) - torch.xlogy(mean, mean).sum(-1)) / math.log(groups)
    counts = (attention.sum(-1) > 0).all(-2)  # (..., Q)
    return (divergence * counts).sum(-1) / counts.sum(-1)


def frequency_response(rate: Tensor, freq: Tensor, omega: Tensor, length: int) -> Tensor:
    """``|Σ_{n<length} e^{λn} e^{iθn} e^{−iωn}| · (1 − e^λ) / (1 − e^{λ·length})``, a bandpass around θ.

    The gain is 1 at ω = θ. The wider the band, the faster the decay; without decay its width is that of the sequence.

    Args:
        rate (Tensor): Decay λ ≤ 0, of any shape that can be broadcast.
        freq (Tensor): Centre frequency θ in radians a token.
        omega (Tensor): Frequencies ω in radians a token.
        length (int): Number of tokens.

    Returns:
        Tensor: The gain, float64, in the shape to which the three are broadcast.
    """
    steps = torch.arange(length, dtype=torch.float64)
    rate, turn = rate.double().unsqueeze(-1), (freq.double() - omega.double()).unsqueeze(-1)
    decay = (rate * steps).exp()
    return torch.polar(*torch.broadcast_tensors(decay, turn * steps)).sum(-1).abs() / decay.sum(-1)


def half_power_width(rate: Tensor) -> Tensor:
    """Width of the band in which an endless filter lets half of the power through, in radians a token.

    From ``|1 − e^{λ+iδ}|² = 2 (1 − e^λ)²`` for the distance δ to the centre; 2π where the gain never falls so low.

    Args:
        rate (Tensor): Decay λ ≤ 0.

    Returns:
        Tensor: float64, in the shape of ``rate``.
    """
    decay = rate.double().exp()
    cosine = 1 - (1 - decay).square() / (2 * decay)
    return 2 * cosine.clamp(min=-1).arccos()


def _normalised(weights: Tensor) -> Tensor:
    """Weights with a sum of 1; those that are all zero stay."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.where(total > 0, 1)
