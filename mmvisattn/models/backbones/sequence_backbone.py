"""What the De-focus attention networks share: an image as a one-dimensional sequence of patches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ...checkpoint.loading import strip_prefix
from ..checks import check_numbers
from ..layers import PatchSequence
from ..layers.join_outputs import join_outputs
from ..layers.patch_sequence import PATCH_SIZE, to_map
from .base_backbone import BaseBackbone, run_blocks


class SequenceBackbone(BaseBackbone):
    """Patches in sequence, blocks that mix them, a norm, and the sequence as a map of stride 16 again.

    A stage, as ``frozen_stages`` and ``out_indices`` count them, is a block. Blocks beyond the last that
    ``out_indices`` asks for are not built.

    Args:
        embed_dims (int): Number of channels C.
        blocks (Sequence[nn.Module]): Modules (B, L, C) → (B, L, C).
        norm_eps (float): Added to the variance by the last LayerNorm.
        token_order (str): See :class:`~mmvisattn.models.layers.PatchSequence`.
        pretrain_size (int): See :class:`~mmvisattn.models.layers.PatchSequence`.
        out_indices (Sequence[int]): Numbers of the blocks to return, from 0.
        frozen_stages (int): Number of the last frozen block, counted from 1; 0 freezes the patch embedding alone.
        with_cp (bool): Recompute each block in the backward instead of keeping its activations.
        in_channels (int): Number of channels of the image.
        init_cfg (dict | list[dict] | None): mmengine's initialisation config.
    """

    patch_weight = 'patch_embed.projection.weight'
    size_step = PATCH_SIZE

    def __init__(
        self,
        embed_dims: int,
        blocks: Sequence[nn.Module],
        norm_eps: float,
        token_order: str,
        pretrain_size: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        with_cp: bool,
        in_channels: int,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(frozen_stages, in_channels=in_channels, init_cfg=init_cfg)
        check_numbers(type(self).__name__, pretrain_size=pretrain_size)
        self.out_indices = self.check_out_indices(out_indices, len(blocks))
        self.check_frozen_stages(frozen_stages, len(blocks))
        self.with_cp = with_cp
        self.patch_embed = PatchSequence(embed_dims, token_order, pretrain_size, in_channels)
        self.blocks = nn.ModuleList(blocks[: self.out_indices[-1] + 1])
        self.norm = nn.LayerNorm(embed_dims, eps=norm_eps)
        self._freeze_stages()

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The patch embedding (stage 0), or a block counted from 1; the norm goes with the last one."""
        if stage == 0:
            return [self.patch_embed]
        if stage > len(self.blocks):
            return []
        return [self.blocks[stage - 1], *([self.norm] if stage == len(self.blocks) else [])]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Patch embedding and class token 0, then one layer a block, the norm last."""
        num_layers = len(self.blocks) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if parts[0] in ('patch_embed', 'cls_token'):
            return 0, num_layers
        return int(parts[1]) + 1 if parts[0] == 'blocks' else num_layers - 1, num_layers

    def checkpoint_filter(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The patch embedding as detectors call it, ``projection``, for the ``proj`` of classifiers; see the base."""
        classifier, detector = 'patch_embed.proj.', 'patch_embed.projection.'
        renamed = {
            detector + name.removeprefix(classifier) if name.startswith(classifier) else name: value
            for name, value in state_dict.items()
        }
        return super().checkpoint_filter(renamed)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        own = strip_prefix(state_dict, prefix)
        for name in own:
            del state_dict[prefix + name]
        state_dict.update({prefix + name: value for name, value in self.checkpoint_filter(own).items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps after the blocks in ``out_indices``, each passed through the norm.

        Args:
            x (Tensor): Images, (B, in_channels, H, W), of any height and width.

        Returns:
            tuple[Tensor, ...]: Maps (B, C, ceil(H / 16), ceil(W / 16)).
        """
        self.check_input(x, min_size=1)
        size, window = self.patch_embed.layout(x)
        x = self.patch_embed(x)
        # Under mixed precision the residual stream has the type of the weights, float32, and not that of products.
        x = x.to(self.norm.weight.dtype)
        outs = []
        for blocks in self._by_output(self.block_calls()):
            x = run_blocks(blocks, x, self.with_cp and self.training)
            outs.append(to_map(self.norm(x), size, window))
        return join_outputs(outs, self.training)

    def block_calls(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """The blocks, ready to be called with the tokens alone."""
        return list(self.blocks)

    def _by_output(self, calls: Sequence[Callable[[Tensor], Tensor]]) -> Iterable[Sequence[Callable[[Tensor], Tensor]]]:
        starts = (0, *(i + 1 for i in self.out_indices))
        return (calls[start:stop] for start, stop in zip(starts, starts[1:]))
