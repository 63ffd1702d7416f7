"""De-focus ViT: a causal vision transformer with a learnable bandpass filter.

`Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_ (Tao et
al., 2024). There is no released code of this form: it is built from the paper's description.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import UserError
from ...ops.filtered_attention import filtered_attention
from ...registry import MODELS
from ..layers import BandpassFilter
from ..layers.patch_sequence import PATCH_SIZE
from .sequence_transformer import SequenceTransformer


class Attention(nn.Module):
    """Multi-head attention with rotated queries and keys and decaying logits.

    Args:
        dim (int): Number of channels C.
        num_heads (int): Number of heads.
        bandpass (BandpassFilter): Rotation and decay.
        causal (bool): Hide later tokens.
    """

    def __init__(self, dim: int, num_heads: int, bandpass: BandpassFilter, causal: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.bandpass = bandpass
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, fastest: float | Tensor | None = None) -> Tensor:
        """(B, L, C) → (B, L, C); ``fastest`` is of :func:`~mmvisattn.ops.decay.fastest_decays`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d) each
        q, k = self.bandpass.rotate(q * q.shape[-1] ** -0.5), self.bandpass.rotate(k)
        out = filtered_attention(q, k, v, self.bandpass.rate(), self.causal, fastest)
        return self.proj(out.transpose(1, 2).flatten(2))


@MODELS.register_module()
class DefocusViT(SequenceTransformer):
    """De-focus causal ViT, a plain backbone with one map of stride 16 for each entry of ``out_indices``.

    `Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_.
    Logits are multiplied by ``e^{λ(t−s)}``, so that far tokens are told apart less and less; queries and keys are
    rotated. λ (one a head) and the frequencies (one a pair of channels) are learnt. There is no position embedding, and
    no class token: last in the sequence, it could not influence the map.

    Weights of timm's DeiT and ViT load by ``init_cfg=dict(type='Pretrained',
    checkpoint='timm://deit_base_patch16_224')``; only the filter is new.

    Args:
        arch (str | dict): ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels), ``depth`` (blocks),
            ``num_heads`` and ``mlp_ratio``. Defaults to ``'base'``.
        token_order (str): ``'window'``: zero-pad the image to a multiple of ``pretrain_size`` and go through it square
            by square; ``'raster'``: row by row. Defaults to ``'window'``.
        pretrain_size (int): Side of the images of pretraining in pixels, a multiple of 16. Defaults to 224.
        rope_scale (float): What positions are divided by for the rotation; the square of the ratio of the side of the
            image to ``pretrain_size``, nominally. Defaults to 20, for 1024 pixels.
        delta_scale (float): What λ is divided by; the ratio of the sides, nominally. Defaults to 4.57, for 1024 pixels.
        causal (bool): Hide later tokens. Otherwise all see all and the filter takes the distance ``|t−s|``; in window
            order images must then be whole windows, since padding would be seen. Defaults to True.
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
        self.causal = causal  # read by build_mixer
        super().__init__(
            arch=arch,
            token_order=token_order,
            pretrain_size=pretrain_size,
            rope_scale=rope_scale,
            delta_scale=delta_scale,
            decay=decay,
            rotation=rotation,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            drop_path_rate=drop_path_rate,
            in_channels=in_channels,
            init_cfg=init_cfg,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps, see :class:`~mmvisattn.models.backbones.sequence_backbone.SequenceBackbone`.

        Raises:
            UserError: If the network is not causal and the image would be padded to whole windows.
        """
        side = PATCH_SIZE * (self.patch_embed.window or 1)
        if not self.causal and self.patch_embed.window and any(n % side for n in x.shape[-2:]):
            raise UserError(
                f'DefocusViT: with `causal=False` every token sees the padding to whole windows, and an image of '
                f"{x.shape[-2]}×{x.shape[-1]} pixels (H×W) would have some; set `token_order='raster'`, or the sides "
                f'of the images to multiples of `pretrain_size`, {side}'
            )
        return super().forward(x)

    def build_mixer(self, dim: int, num_heads: int, bandpass: BandpassFilter) -> Attention:
        """See :class:`SequenceTransformer`."""
        return Attention(dim, num_heads, bandpass, self.causal)
