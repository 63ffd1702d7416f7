"""The bandpass filter of De-focus attention: exponential decay together with rotation, both learnable.

`Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_.
"""

import torch
from torch import Tensor, nn

from ...ops.common import at_least_float32
from .rotary import turn_pairs


def rotate(x: Tensor, freq: Tensor, scale: float = 1.0) -> Tensor:
    """Turn each pair of adjacent components by an angle that grows with the position, in float32 at least.

    :func:`turn_pairs` with ``angle[t, n] = t / scale · freq[n]``.

    Args:
        x (Tensor): Sequence, (..., L, N) with N even.
        freq (Tensor): One frequency for each component, (N,).
        scale (float): What the position is divided by.

    Returns:
        Tensor: (..., L, N), float32 or float64.
    """
    freq = at_least_float32(freq)
    position = torch.arange(x.shape[-2], dtype=freq.dtype, device=x.device) / scale
    angle = position.unsqueeze(-1) * freq  # (L, N)
    return turn_pairs(x, angle.cos(), angle.sin())


class BandpassFilter(nn.Module):
    """``e^{λ(t−s)} · e^{iθ(t−s)}``: a decay for each head, a frequency for each pair of its channels.

    λ = −exp(λ̂) with a learnable λ̂ for each head, such that ``e^λ`` spans 1 − 2⁻⁵, 1 − 2⁻⁶, … at first, as in RetNet;
    θ starts as in rotary position embedding.

    Args:
        num_heads (int): Number of heads.
        head_dim (int): Channels of a head, an even number.
        rope_scale (float): What positions are divided by for the rotation.
        delta_scale (float): What λ is divided by.
        decay (bool): Have the decay.
        rotation (bool): Have the rotation.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        decay: bool = True,
        rotation: bool = True,
    ) -> None:
        super().__init__()
        self.rope_scale = rope_scale
        self.delta_scale = delta_scale
        self.log_decay = self.freq = None
        if decay:
            base = 1 - 2.0 ** -(5 + torch.arange(num_heads, dtype=torch.float64))
            self.log_decay = nn.Parameter((-base.log()).log().float())  # λ̂
        if rotation:
            pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
            self.freq = nn.Parameter((10000.0 ** (-pairs / head_dim)).float())  # θ

    def rate(self) -> Tensor | None:
        """λ of each head, (heads,), negative; None without decay."""
        if self.log_decay is None:
            return None
        return -at_least_float32(self.log_decay).exp() / self.delta_scale

    def rotate(self, x: Tensor) -> Tensor:
        """(B, heads, L, head_dim) → the same, turned, in the type of ``x``."""
        if self.freq is None:
            return x
        return rotate(x, self.freq.repeat_interleave(2), self.rope_scale).to(x.dtype)
