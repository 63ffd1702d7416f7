"""The De-focus operators written out formula by formula: over all pairs of tokens, or step by step."""

from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.backbones import DefocusMamba
from ..ops.selective_scan import interface


def naive_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, causal: bool) -> Tensor:
    """``softmax_s(e^{λ|t−s|} · <q_t, k_s>) · v_s``, without the later tokens where causal.

    Args:
        q (Tensor): Scaled queries, (B, heads, L, C).
        k (Tensor): Keys of the same shape.
        v (Tensor): Values of the same shape.
        rate (Tensor | None): Decay λ of each head, (heads,), or None for no decay.
        causal (bool): Whether a token sees no later ones.

    Returns:
        Tensor: (B, heads, L, C)
    """
    position = torch.arange(q.shape[2])
    distance = position[:, None] - position
    logits = q @ k.mT
    if rate is not None:
        logits = logits * torch.exp(rate[:, None, None] * distance.abs())
    if causal:
        logits = logits + torch.zeros(distance.shape, dtype=q.dtype).masked_fill(distance < 0, -torch.inf)
    return F.softmax(logits, -1) @ v


def attention_inputs(length: int, decay: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random queries, keys and values, (2, 3, L, 8), and decays, (3,) or None, in float64, that want gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.double, requires_grad=True) for _ in range(3))
    rate = (-torch.rand(3, dtype=torch.double)).requires_grad_() if decay else None
    return q, k, v, rate


def quadratic_retention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """``Σ_{s≤t} <q_t, k_s> e^{λ(t−s)} v_s``; shapes as :func:`naive_attention`."""
    position = torch.arange(q.shape[2])
    distance = position[:, None] - position
    filter = torch.exp(rate[:, None, None] * distance.clamp(min=0)).tril()
    return (q @ k.mT * filter) @ v


def turned(x: Tensor, freq: Tensor, scale: float) -> Tensor:
    """Pairs of channels as complex numbers, times ``e^{iθt/scale}``: (B, heads, L, C) → (B, heads, L, C)."""
    angle = torch.arange(x.shape[2], dtype=torch.double)[:, None] / scale * freq
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def materialising_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str = 'materialising'
) -> Tensor:
    """The selective scan: decays and inputs of all steps, (B, D, L, N), at once, then a loop.

    Arguments and result are those of :func:`mmvisattn.ops.selective_scan.selective_scan`.
    """
    decay = torch.exp(torch.einsum('bdl,dn->bdln', delta, A))
    added = torch.einsum('bdl,bnl,bdl->bdln', delta, B, u)
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for decay_t, added_t, C_t in zip(decay.unbind(2), added.unbind(2), C.unbind(2), strict=True):
        h = decay_t * h + added_t
        y.append(torch.einsum('bdn,bn->bd', h, C_t))
    return torch.stack(y, dim=2)


class PlainDefocusMamba(nn.Module):
    """De-focus Mamba with :func:`materialising_scan`.

    Args:
        network (DefocusMamba): The network whose parameters it has.
    """

    def __init__(self, network: DefocusMamba) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the network."""
        with mock.patch.object(interface, 'selective_scan', materialising_scan):
            return self.network(x)
