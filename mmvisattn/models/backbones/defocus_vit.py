"""De-focus ViT: a causal vision transformer with a learnable bandpass filter.

`Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_ (Tao et
al., 2024). There is no released code of this form: it is built from the paper's description.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...registry import MODELS
from ..checks import check_heads, check_hidden, check_numbers
from ..layers import BandpassFilter, TransformerBlock
from ..layers.bandpass import decay_factors, decay_factors_fit
from .sequence_backbone import SequenceBackbone

# Queries that are computed together. A block holds this many rows of the attention map, the whole never exists.
QUERY_BLOCK = 128


def filtered_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, causal: bool = True) -> Tensor:
    """``softmax(e^{λ|t−s|} · <q_t, k_s>) · v_s`` in memory linear in the length of the sequence.

    Args:
        q: Scaled queries, (B, heads, L, d).
        k: Keys, (B, heads, L, d).
        v: Values, (B, heads, L, d).
        rate: λ of each head, (heads,), or None for no decay.
        causal: Hide keys after the query.

    Returns:
        (B, heads, L, d).
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
        q: Scaled queries at the positions from ``start`` on, (B, heads, Q, d).
        k: Keys at the positions from 0 on, (B, heads, S, d).
        v: Values of the same positions, (B, heads, S, d).
        rate: λ of each head, (heads,), or None for no decay.
        start: Position of the first query.
        causal: Hide keys after the query.

    Returns:
        (B, heads, Q, d).
    """
    positions = torch.arange(max(k.shape[-2], start + q.shape[-2]), device=q.device)
    distance = positions[start : start + q.shape[-2], None] - positions[: k.shape[-2]]  # (Q, S)
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
        q: Scaled queries, (B, heads, L, d).
        k: Keys, (B, heads, L, d).
        v: Values, (B, heads, L, d).
        rate: λ of each head, (heads,), or None for no decay.
        causal: Hide keys after the query; blocks of keys that no query of a block sees are skipped.
        block: Queries in a block.

    Returns:
        (B, heads, L, d).
    """
    length = q.shape[-2]
    outs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = stop if causal else length
        args = (q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], rate, start, causal)
        outs.append(checkpoint(attend, *args, use_reentrant=False) if torch.is_grad_enabled() else attend(*args))
    return torch.cat(outs, dim=-2)


class Attention(nn.Module):
    """Multi-head attention with rotated queries and keys and decaying logits.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads.
        bandpass: Rotation and decay.
        causal: Hide later tokens.
    """

    def __init__(self, dim: int, num_heads: int, bandpass: BandpassFilter, causal: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.bandpass = bandpass
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d) each
        q, k = self.bandpass.rotate(q * q.shape[-1] ** -0.5), self.bandpass.rotate(k)
        out = filtered_attention(q, k, v, self.bandpass.rate(), self.causal)
        return self.proj(out.transpose(1, 2).flatten(2))


@MODELS.register_module()
class DefocusViT(SequenceBackbone):
    """De-focus causal ViT, a plain backbone with one map of stride 16 for each entry of ``out_indices``.

    `Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_.
    Logits are multiplied by ``e^{λ(t−s)}``, so that far tokens are told apart less and less; queries and keys are
    rotated. λ (one a head) and the frequencies (one a pair of channels) are learnt. There is no position embedding, and
    no class token: last in the sequence, it could not influence the map.

    Weights of timm's DeiT and ViT load by ``init_cfg=dict(type='Pretrained',
    checkpoint='timm://deit_base_patch16_224')``; only the filter is new.

    Args:
        arch: ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels), ``depth`` (blocks), ``num_heads`` and
            ``mlp_ratio``. Default: ``'base'``.
        token_order: ``'window'``: zero-pad the image to a multiple of ``pretrain_size`` and go through it square by
            square; ``'raster'``: row by row. Default: ``'window'``.
        pretrain_size: Side of the images of pretraining in pixels, a multiple of 16. Default: 224.
        rope_scale: What positions are divided by for the rotation; the square of the ratio of the side of the image
            to ``pretrain_size``, nominally. Default: 20, for 1024 pixels.
        delta_scale: What λ is divided by; the ratio of the sides, nominally. Default: 4.57, for 1024 pixels.
        causal: Hide later tokens. Otherwise all see all and the filter takes the distance ``|t−s|``. Default: True.
        decay: Have the decay. Default: True.
        rotation: Have the rotation. Default: True.
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
        causal: bool = True,
        decay: bool = True,
        rotation: bool = True,
        out_indices: Sequence[int] = (-1,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        sizes = self.parse_arch(arch)
        scales = dict(rope_scale=rope_scale, delta_scale=delta_scale)
        check_numbers('DefocusViT', **sizes, **scales, drop_path_rate=drop_path_rate)
        dim, num_heads = sizes['embed_dims'], sizes['num_heads']
        check_heads('DefocusViT', dim, num_heads, of_head=2)
        check_hidden('DefocusViT', dim, sizes['mlp_ratio'])
        blocks = []
        for rate in calculate_drop_path_rates(drop_path_rate, sizes['depth']):
            bandpass = BandpassFilter(num_heads, dim // num_heads, **scales, decay=decay, rotation=rotation)
            attn = Attention(dim, num_heads, bandpass, causal)
            blocks.append(TransformerBlock(dim, attn, sizes['mlp_ratio'], rate))
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

    @property
    def new_keys(self) -> list[str]:
        """The filters, which a classifier's checkpoint does not have."""
        return [name for name in self.state_dict() if '.bandpass.' in name]
