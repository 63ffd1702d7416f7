"""FlexAttention between the levels of a feature pyramid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import UserError
from ...ops.common import is_traced
from ...registry import MODELS
from ..checks import check_heads, check_hidden, check_numbers
from ..layers.cells import Tiling, add_tokens, gather_tokens
from ..layers.checkpointing import run
from ..layers.hierarchical_attention import HierarchicalBlock, axial_angles
from ..layers.map_scout import MapScout
from ..layers.padding import content_size, divide_each, divide_up, is_inside, token_side
from ..layers.selection import Relevance, TokenSelector, pool_to_cells


@MODELS.register_module()
class FlexAttentionNeck(BaseModule):
    """Attention from a coarse level of a pyramid to the few places of a fine level that it points at.

    After `FlexAttention <https://arxiv.org/abs/2407.20228>`_, see
    :class:`~mmvisattn.models.backbones.flex_vit.FlexViT`. After a plain layer over the coarse level learned questions
    choose cells of the fine one, see :class:`~mmvisattn.models.layers.selection.Relevance`, and with them a small
    judge of the places of the fine level, :class:`~mmvisattn.models.layers.map_scout.MapScout`; then each of
    ``num_layers`` layers attends among the coarse level and the chosen cells. The coarse level is replaced, and the
    change of the chosen cells, times their gate, is added to the fine one. All levels keep their shape and the others
    their values, so it stands between any neck whose levels halve in size and any head: ``neck=[dict(type='FPN', …),
    dict(type='mmvisattn.FlexAttentionNeck', …)]``.

    Maps do not tell what of a batch is padding; the images do, which :class:`~mmvisattn.engine.PaddingHook` has the
    neck see, or :func:`~mmvisattn.engine.watch_images` without a runner. Then cells are chosen in the image alone,
    their number goes by its size, and nothing attends to padding. :class:`~mmvisattn.engine.CellLossHook` teaches the
    choice.

    Args:
        in_channels (int): Channels C of the levels, a multiple of ``4 * num_heads``. Defaults to 256.
        low_level (int): Number of the coarse level, from 0. Defaults to 3, stride 32 of an FPN that begins at stride 4.
        high_level (int): Number of the fine level, less than ``low_level``. Defaults to 1, stride 8 of such an FPN.
        num_layers (int): Number of hierarchical layers. Defaults to 2.
        num_heads (int): Number of heads. Defaults to 8.
        mlp_ratio (float): Width of the MLPs as a multiple of ``in_channels``. Defaults to 4.
        select_mode (str): ``'topk'`` or ``'threshold'``, see
            :class:`~mmvisattn.models.layers.selection.TokenSelector`. Defaults to ``'topk'``.
        select_ratio (float): Share of the cells that ``'topk'`` selects, 0 to 1. Defaults to 0.1.
        select_threshold (float): What the attention of the questions, on a scale of 0…255, must exceed in mode
            ``'threshold'``. Defaults to 48.
        select_explore (float): Share of the selected cells that ``'topk'`` draws at random in training, 0 to 1.
            Defaults to 0.15.
        cell_size (int): Side of a cell in tokens of the coarse level. Defaults to 1.
        with_cp (bool): Recompute each layer in the backward instead of keeping its activations. Defaults to False.
        drop_path_rate (float): Drop path rate of the layers. Defaults to 0.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to truncated normal for
            linear layers.

    Raises:
        UserError: If an argument is out of range, or the levels are not there or do not halve in size.
    """

    def __init__(
        self,
        in_channels: int = 256,
        low_level: int = 3,
        high_level: int = 1,
        num_layers: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        select_mode: str = 'topk',
        select_ratio: float = 0.1,
        select_threshold: float = 48.0,
        select_explore: float = 0.15,
        cell_size: int = 1,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_numbers(
            'FlexAttentionNeck',
            in_channels=in_channels,
            low_level=low_level,
            high_level=high_level,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            cell_size=cell_size,
            drop_path_rate=drop_path_rate,
        )
        if high_level >= low_level:
            raise UserError(
                f'FlexAttentionNeck: `high_level` is {high_level} and `low_level` {low_level}; levels count from 0, '
                'the finest, and `high_level` must be the finer of the two, that is the lower number'
            )
        # The channels of a head carry the row and the column.
        check_heads('FlexAttentionNeck', in_channels, num_heads, of_head=4, argument='in_channels')
        check_hidden('FlexAttentionNeck', in_channels, mlp_ratio)
        self.in_channels = in_channels
        self.low_level = low_level
        self.high_level = high_level
        self.zoom = 2 ** (low_level - high_level)
        self.head_dim = in_channels // num_heads
        self.cell_size = cell_size
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(
            HierarchicalBlock(in_channels, num_heads, mlp_ratio, drop_path_rate, high_res=i > 0)
            for i in range(num_layers + 1)
        )
        self.relevance = Relevance(in_channels, MapScout(in_channels, self.zoom))
        self.selector = TokenSelector(select_mode, select_ratio, select_threshold, select_explore)
        self.watching = False
        self.images: Tensor | None = None  # of the pyramid to come
        self.size_step: int | None = None  # side of a cell in pixels, once images have been seen

    def watch(self, backbone: nn.Module) -> None:
        """See from now on the images that enter a backbone, by which padding is told.

        Args:
            backbone (nn.Module): The backbone of the model that the neck is in.
        """
        if not self.watching:  # several hooks may ask for it
            backbone.register_forward_pre_hook(self._see)
            self.watching = True

    def _see(self, backbone: nn.Module, args: tuple[Tensor]) -> None:
        self.images = args[0]

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Refine two levels of a pyramid.

        Args:
            inputs (Sequence[Tensor]): Levels from fine to coarse, (B, C, H_i, W_i) with sizes that halve from level to
                level, rounded either way.

        Returns:
            tuple[Tensor, ...]: Levels of the same shapes and types. Only ``low_level`` and ``high_level`` are new; the
            latter where it was selected.
        """
        self.check_levels(inputs)
        low_map, high_map = inputs[self.low_level], inputs[self.high_level]
        low_grid, high_grid = ((x.shape[2], x.shape[3]) for x in (low_map, high_map))
        tiling = Tiling(high_grid, (self.cell_size * self.zoom,) * 2)
        device, with_cp = high_map.device, self.with_cp and self.training
        inside = valid = valid_cells = None
        shown = self.find_content(high_grid)
        if shown is not None:
            inside = is_inside(shown, high_grid).flatten(1)  # (B, H·W)
            valid = is_inside(divide_each(shown, self.zoom), low_grid).flatten(1)  # (B, N)
            valid_cells = is_inside(divide_each(shown, tiling.cell[0]), tiling.shape)

        # Under mixed precision the residual stream has the type of the weights, float32, and not that of products.
        dtype = next(self.blocks.parameters()).dtype
        low = low_map.to(dtype).flatten(2).transpose(1, 2)  # (B, N, C)
        high = high_map.to(dtype).flatten(2).transpose(1, 2)  # (B, H·W, C)
        low_angles = axial_angles(low_grid, self.zoom, self.head_dim, device).flatten(0, 1)[None]
        high_angles = axial_angles(high_grid, 1, self.head_dim, device).flatten(0, 1)

        low, _ = run(self.blocks[0], low, None, valid, low_angles, with_cp=with_cp)
        relevance = self.relevance(low, low_grid, valid, high, high_grid, low_grid, inside)
        relevance = pool_to_cells(self.cover(relevance, high_grid), self.cell_size)
        selection = self.selector(relevance, valid_cells)
        index, keep = tiling.locate(selection)  # (B, M)
        if inside is None or valid is None:
            mask = None if keep is None else F.pad(keep, (low.shape[1], 0), value=True)
        else:
            assert keep is not None  # batches with padding have images with fewer cells than others
            keep = keep & inside.gather(1, index)
            mask = torch.cat([valid, keep], 1)
        angles = torch.cat([low_angles.expand(low.shape[0], -1, -1), high_angles[index]], 1)
        chosen = gather_tokens(high, index)
        both = torch.cat([low, chosen], 1)
        for block in self.blocks[1:]:
            both = run(block.forward_both, both, low.shape[1], mask, angles, with_cp=with_cp)
        low, new = both.split([low.shape[1], index.shape[1]], 1)
        gate = selection.gate(relevance, tiling.cell[0] * tiling.cell[1])
        high = add_tokens(high, index, (new - chosen) * gate, keep)

        outs = list(inputs)
        low = low.transpose(1, 2).unflatten(2, low_grid)
        outs[self.low_level] = low.to(low_map.dtype).contiguous()
        high = high.transpose(1, 2).unflatten(2, high_grid)
        outs[self.high_level] = high.to(high_map.dtype).contiguous()
        return tuple(outs)

    def find_content(self, high_grid: tuple[int, int]) -> Tensor | None:
        """What of the fine level is image, by the images that were seen for this pyramid; sets ``size_step``.

        Args:
            high_grid (tuple[int, int]): Rows and columns of the fine level.

        Returns:
            Tensor | None: Rows and columns of tokens of each image, (B, 2), or None where all have a part in it or no
            images were seen.
        """
        images, self.images = self.images, None
        if images is None:
            return None
        side = token_side(images.shape[2:], high_grid)
        self.size_step = side * self.zoom * self.cell_size
        shown = divide_each(content_size(images), side)
        # Without a mask attention is faster. A graph cannot choose, since it must not depend on what an image shows.
        if not is_traced() and images.device.type != 'meta' and (shown == shown.new_tensor(high_grid)).all():
            return None
        return shown

    def cover(self, relevance: Tensor, high_grid: tuple[int, int]) -> Tensor:
        """Relevance (B, rows, columns) continued to the border of the fine level, where the coarse one was floored."""
        rows, columns = divide_up(high_grid, self.zoom)
        missing = (0, columns - relevance.shape[2], 0, rows - relevance.shape[1])
        return F.pad(relevance[:, None], missing, mode='replicate')[:, 0] if any(missing) else relevance

    def check_levels(self, inputs: Sequence[Tensor]) -> None:
        """Refuse a pyramid without the two levels, or with levels that do not fit each other.

        Raises:
            UserError: If it is one.
        """
        if len(inputs) <= self.low_level:
            raise UserError(
                f'FlexAttentionNeck was given {len(inputs)} levels, numbered 0 to {len(inputs) - 1}; `low_level` is '
                f'{self.low_level}: set it to one that exists, or have the neck before make more (`num_outs`)'
            )
        low, high = inputs[self.low_level], inputs[self.high_level]
        for level, x in ((self.low_level, low), (self.high_level, high)):
            if x.shape[1] != self.in_channels:
                raise UserError(
                    f'FlexAttentionNeck: level {level} has {x.shape[1]} channels and `in_channels` is '
                    f'{self.in_channels}; set it to the `out_channels` of the neck before'
                )
        zoom = self.zoom
        if not all(zoom * (n - 1) < m < zoom * (n + 1) for n, m in zip(low.shape[2:], high.shape[2:])):
            raise UserError(
                f'FlexAttentionNeck: level {self.high_level} is {tuple(high.shape[2:])} and level {self.low_level} '
                f'{tuple(low.shape[2:])}, where it should be {zoom} times as fine; put the neck after one whose levels '
                'halve in size, such as FPN'
            )
