"""De-focus RetNet: retention on image sequences, with a learnable bandpass filter.

`Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_ (Tao et
al., 2024), after `Retentive Network <https://arxiv.org/abs/2307.08621>`_ (Sun et al., 2023). There is no released code
of this form: it is built from the papers' descriptions.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.retention import chunkwise_retention
from ...registry import MODELS
from ..layers import BandpassFilter, group_rms_norm
from .sequence_transformer import SequenceTransformer


class Retention(nn.Module):
    """Multi-scale retention: attention without softmax, normalised in each head and gated.

    Args:
        dim (int): Number of channels C.
        num_heads (int): Number of heads.
        bandpass (BandpassFilter): Rotation and decay.
    """

    def __init__(self, dim: int, num_heads: int, bandpass: BandpassFilter) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.gate = nn.Linear(dim, dim)
        self.bandpass = bandpass
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, fastest: float | Tensor | None = None) -> Tensor:
        """(B, L, C) → (B, L, C); ``fastest`` is of :func:`~mmvisattn.ops.decay.fastest_decays`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d) each
        q, k = self.bandpass.rotate(q * q.shape[-1] ** -0.5), self.bandpass.rotate(k)
        out = chunkwise_retention(q, k, v, self.bandpass.rate(), fastest=fastest)
        out = group_rms_norm(out.transpose(1, 2), out.shape[-1]).flatten(2)
        return self.proj(out.to(x.dtype) * F.silu(self.gate(x)))


@MODELS.register_module()
class DefocusRetNet(SequenceTransformer):
    """De-focus RetNet, a plain causal backbone with one map of stride 16 for each entry of ``out_indices``.

    `Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_. The
    filter of :class:`DefocusViT` without its softmax, in time and memory linear in the number of patches. λ (one a
    head) and the frequencies (one a pair of channels) are learnt.

    Args:
        arch (str | dict): ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels), ``depth`` (blocks),
            ``num_heads`` and ``mlp_ratio``. Defaults to ``'base'``.
        token_order (str): ``'window'``: zero-pad the image to a multiple of ``pretrain_size`` and go through it square
            by square; ``'raster'``: row by row. Defaults to ``'window'``.
        pretrain_size (int): Side of the images of pretraining in pixels, a multiple of 16. Defaults to 224.
        rope_scale (float): What positions are divided by for the rotation; the square of the ratio of the side of the
            image to ``pretrain_size``, nominally. Defaults to 20, for 1024 pixels.
        delta_scale (float): What λ is divided by; the ratio of the sides, nominally. Defaults to 4.57, for 1024 pixels.
        decay (bool): Have the decay. Defaults to True.
        rotation (bool): Have the rotation. Defaults to True.
        out_indices (Sequence[int]): Numbers of the blocks to return, from 0; each goes through the last norm. Defaults
            to the last.
        frozen_stages (int): Number of the last frozen block, counted from 1; 0 freezes the patch embedding alone, -1
            nothing. Defaults to -1.
        with_cp (bool): Recompute each block in the backward instead of keeping its activations. Defaults to False.
        drop_path_rate (float): Drop path rate of the last block; rises linearly from 0 over the blocks. Defaults to 0.
        in_channels (int): Number of channels of the image; weights for RGB are fitted to it as they load. Defaults to
            3.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to None, truncated normal for
            linear layers.

    Raises:
        UserError: If an argument is out of range.
    """

    def build_mixer(self, dim: int, num_heads: int, bandpass: BandpassFilter) -> Retention:
        """See :class:`SequenceTransformer`."""
        return Retention(dim, num_heads, bandpass)
