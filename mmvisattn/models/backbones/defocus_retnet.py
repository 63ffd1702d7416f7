"""De-focus RetNet: retention on image sequences, with a learnable bandpass filter.

`Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_ (Tao et
al., 2024), after `Retentive Network <https://arxiv.org/abs/2307.08621>`_ (Sun et al., 2023). There is no released code
of this form: it is built from the papers' descriptions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ...ops.common import no_autocast
from ...registry import MODELS
from ..checks import check_heads, check_hidden, check_numbers
from ..layers import BandpassFilter, TransformerBlock, at_least_float32, group_rms_norm
from ..layers.bandpass import decay_factors, decay_factors_fit
from .sequence_backbone import SequenceBackbone

# Tokens that are computed together: within a chunk pairwise, between chunks through a state.
CHUNK = 128


def chunkwise_retention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, chunk: int = CHUNK) -> Tensor:
    """``y_t = Σ_{s≤t} <q_t, k_s> e^{λ(t−s)} v_s``, in time and memory linear in the length of the sequence.

    The decay is made part of queries and keys where its factors stay in range; elsewhere all exponents are negative or
    zero. The state is in float32 at least.

    Args:
        q: Scaled queries, (B, heads, L, d).
        k: Keys, (B, heads, L, d).
        v: Values, (B, heads, L, d).
        rate: λ of each head, (heads,), negative.
        chunk: Tokens in a chunk.

    Returns:
        (B, heads, L, d), float32 or float64.
    """
    length = q.shape[-2]
    chunk = min(chunk, length)
    q, k, v = (_split(at_least_float32(x), chunk) for x in (q, k, v))  # (B, heads, chunks, chunk, d)
    over_chunk = (rate.view(-1, 1, 1) * chunk).exp()  # what is left after a chunk
    # What the tokens of a chunk read of each other, and what the chunk adds to the state: (…, chunks, d, d).
    factored = decay_factors_fit(rate, chunk, q.dtype)
    if factored:
        q_factor, k_factor = (x.unsqueeze(1) for x in decay_factors(rate, chunk))
        q, k = _Scaled.apply(q, q_factor), _Scaled.apply(k, k_factor)
        out = _Causal.apply(q @ k.mT) @ v
        added = k.mT @ v
    else:
        rate = rate.view(-1, 1, 1, 1)
        position = torch.arange(chunk, device=q.device).unsqueeze(-1)
        distance = position - position.mT
        out = (q @ k.mT * (rate * distance.clamp(min=0)).exp() * (distance >= 0)) @ v
        added = (k * (rate * (chunk - 1 - position)).exp()).mT @ v
        q = q * (rate * (position + 1)).exp()

    state, states = torch.zeros_like(added[:, :, 0]), []
    for part in added.unbind(2):
        states.append(state)
        # The factors of the keys decay to the middle of the chunk, and those of the queries go on from there.
        state = (state + part) * over_chunk if factored else torch.addcmul(part, state, over_chunk)
    # What the tokens read of the state, in one pass with the sum.
    out = torch.baddbmm(*(x.flatten(0, 2) for x in (out, q, torch.stack(states, 2))))
    return out.unflatten(0, v.shape[:3]).flatten(2, 3)[:, :, :length]


# What these two get as gradient is a product that nobody else holds, so they work in place: fresh memory costs more
# than the arithmetic. Not where a graph of the gradient is made.


class _Scaled(torch.autograd.Function):
    """Chunks (B, heads, chunks, chunk, d) times factors (heads, 1, chunk, 1)."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return x * factor

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, factor = ctx.saved_tensors
        factor_grad = (grad * x).sum((0, 2, 4)).view_as(factor) if ctx.needs_input_grad[1] else None
        return grad * factor if torch.is_grad_enabled() else grad.mul_(factor), factor_grad


class _Causal(torch.autograd.Function):
    """Zero what lies above the diagonal, in place."""

    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        ctx.mark_dirty(scores)
        return scores.tril_()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.tril() if torch.is_grad_enabled() else grad.tril_()


def _split(x: Tensor, chunk: int) -> Tensor:
    padding = -x.shape[-2] % chunk
    return (F.pad(x, (0, 0, 0, padding)) if padding else x).unflatten(-2, (-1, chunk))


class Retention(nn.Module):
    """Multi-scale retention: attention without softmax, normalised in each head and gated.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads.
        bandpass: Rotation and decay.
    """

    def __init__(self, dim: int, num_heads: int, bandpass: BandpassFilter) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.gate = nn.Linear(dim, dim)
        self.bandpass = bandpass
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d) each
        q, k = self.bandpass.rotate(q * q.shape[-1] ** -0.5), self.bandpass.rotate(k)
        with no_autocast(x.device):
            out = chunkwise_retention(q, k, v, self.bandpass.rate())
        out = group_rms_norm(out.transpose(1, 2), out.shape[-1]).flatten(2)
        return self.proj(out.to(x.dtype) * F.silu(self.gate(x)))


@MODELS.register_module()
class DefocusRetNet(SequenceBackbone):
    """De-focus RetNet, a plain causal backbone with one map of stride 16 for each entry of ``out_indices``.

    `Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_. The
    filter of :class:`DefocusViT` without its softmax, in time and memory linear in the number of patches. λ (one a
    head) and the frequencies (one a pair of channels) are learnt.

    Args:
        arch: ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels), ``depth`` (blocks), ``num_heads`` and
            ``mlp_ratio``. Default: ``'base'``.
        token_order: ``'window'``: zero-pad the image to a multiple of ``pretrain_size`` and go through it square by
            square; ``'raster'``: row by row. Default: ``'window'``.
        pretrain_size: Side of the images of pretraining in pixels, a multiple of 16. Default: 224.
        rope_scale: What positions are divided by for the rotation; the square of the ratio of the side of the image
            to ``pretrain_size``, nominally. Default: 20, for 1024 pixels.
        delta_scale: What λ is divided by; the ratio of the sides, nominally. Default: 4.57, for 1024 pixels.
        out_indices: Numbers of the blocks to return, from 0; each goes through the last norm. Default: the last.
        frozen_stages: Number of the last frozen block, counted from 1; 0 freezes the patch embedding alone, -1
            nothing. Default: -1.
        with_cp: Recompute each block in the backward instead of keeping its activations. Default: False.
        drop_path_rate: Drop path rate of the last block; rises linearly from 0 over the blocks. Default: 0.
        in_channels: Number of channels of the image; weights for RGB are fitted to it as they load. Default: 3.
        init_cfg: mmengine's initialisation config. Default: None, truncated normal for linear layers.

    Raises:
        UserError: If an argument is out of range.
    """

    arch_settings = {
        'small': dict(embed_dims=384, depth=12, num_heads=6, mlp_ratio=4),
        'base': dict(embed_dims=768, depth=12, num_heads=12, mlp_ratio=4),
    }

    def __init__(
        self,
        arch: str | dict = 'base',
        token_order: str = 'window',
        pretrain_size: int = 224,
        rope_scale: float = 20.0,
        delta_scale: float = 4.57,
        out_indices: Sequence[int] = (-1,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        sizes = self.parse_arch(arch)
        scales = dict(rope_scale=rope_scale, delta_scale=delta_scale)
        check_numbers('DefocusRetNet', **sizes, **scales, drop_path_rate=drop_path_rate)
        dim, num_heads = sizes['embed_dims'], sizes['num_heads']
        check_heads('DefocusRetNet', dim, num_heads, of_head=2)
        check_hidden('DefocusRetNet', dim, sizes['mlp_ratio'])
        blocks = []
        for rate in calculate_drop_path_rates(drop_path_rate, sizes['depth']):
            bandpass = BandpassFilter(num_heads, dim // num_heads, **scales)
            blocks.append(TransformerBlock(dim, Retention(dim, num_heads, bandpass), sizes['mlp_ratio'], rate))
        super().__init__(
            dim,
            blocks,
            norm_eps=1e-6,
            token_order=token_order,
            pretrain_size=pretrain_size,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            in_channels=in_channels,
            init_cfg=init_cfg,
        )
