"""What the De-focus transformers share: blocks of a mixer with a bandpass filter and an MLP."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from ...ops.decay import fastest_decays
from ..checks import check_heads, check_hidden, check_numbers
from ..layers import BandpassFilter, TransformerBlock
from .base_backbone import drop_path_rates
from .sequence_backbone import SequenceBackbone


class SequenceTransformer(SequenceBackbone):
    """A transformer on a sequence of patches; a subclass says in :meth:`build_mixer` what mixes them.

    Args:
        arch (str | dict): A name in ``arch_settings``, or a dict with ``embed_dims`` (channels), ``depth`` (blocks),
            ``num_heads`` and ``mlp_ratio``.
        token_order (str): See :class:`~mmvisattn.models.layers.PatchSequence`.
        pretrain_size (int): See :class:`~mmvisattn.models.layers.PatchSequence`.
        rope_scale (float): What positions are divided by for the rotation.
        delta_scale (float): What λ is divided by.
        decay (bool): Have the decay.
        rotation (bool): Have the rotation.
        out_indices (Sequence[int]): Numbers of the blocks to return, from 0.
        frozen_stages (int): Number of the last frozen block, counted from 1; 0 freezes the patch embedding alone.
        with_cp (bool): Recompute each block in the backward instead of keeping its activations.
        drop_path_rate (float): Drop path rate of the last block; rises linearly from 0 over the blocks.
        in_channels (int): Number of channels of the image.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config.

    Raises:
        UserError: If an argument is out of range.
    """

    # Those of DeiT (https://arxiv.org/abs/2012.12877).
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
        decay: bool = True,
        rotation: bool = True,
        out_indices: Sequence[int] = (-1,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        name = type(self).__name__
        sizes = self.parse_arch(arch)
        check_numbers(name, **sizes, rope_scale=rope_scale, delta_scale=delta_scale, drop_path_rate=drop_path_rate)
        dim, num_heads, mlp_ratio = sizes['embed_dims'], sizes['num_heads'], sizes['mlp_ratio']
        check_heads(name, dim, num_heads, of_head=2)
        check_hidden(name, dim, mlp_ratio)
        blocks = []
        for rate in drop_path_rates(drop_path_rate, sizes['depth']):
            bandpass = BandpassFilter(num_heads, dim // num_heads, rope_scale, delta_scale, decay, rotation)
            blocks.append(TransformerBlock(dim, self.build_mixer(dim, num_heads, bandpass), mlp_ratio, rate))
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

    @abstractmethod
    def build_mixer(self, dim: int, num_heads: int, bandpass: BandpassFilter) -> nn.Module:
        """What mixes the tokens of a block, (B, L, C) → (B, L, C); its filter is named ``bandpass``.

        It also takes ``fastest``, see :func:`~mmvisattn.ops.decay.fastest_decays`.

        Called for each block before torch's own constructor, so that what it reads of ``self`` has to be set by then.

        Args:
            dim (int): Number of channels C.
            num_heads (int): Number of heads.
            bandpass (BandpassFilter): The filter.
        """

    def block_calls(self) -> list[Callable[[Tensor], Tensor]]:
        """The blocks, each with the fastest of its decays: the device is waited for once, and not in every block."""
        fastest = fastest_decays([cast(Any, block).attn.bandpass.rate() for block in self.blocks])
        return [partial(block, fastest=rate) for block, rate in zip(self.blocks, fastest)]

    @property
    def new_keys(self) -> list[str]:
        """The filters, which a classifier's checkpoint does not have."""
        return [name for name in self.state_dict() if '.bandpass.' in name]
