"""FlexViT, a vision transformer that looks closely only where its attention points.

It brings `FlexAttention <https://arxiv.org/abs/2407.20228>`_ (Li et al., 2024), made for vision-language models, to
dense prediction, as a glance and a commitment. A plain ViT or DeiT glances at the image shrunk by ``zoom``; learned
questions, asked of what it saw, and a scout for what is smaller than a patch choose cells of the full image; only their
patches are embedded, and catch up through the same layers, with the low-resolution tokens of each layer in view; in the
last layers the tokens of both resolutions attend to each other. What was not chosen is the low-resolution map, made
larger. Weights of timm's ViT and DeiT load as they are. :class:`~mmvisattn.engine.CellLossHook` teaches the choice.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from ...errors import UserError
from ...ops.common import is_traced, no_autocast
from ...registry import MODELS
from ..checks import check_heads, check_hidden, check_numbers
from ..layers.cells import Tiling, add_tokens, gather_tokens
from ..layers.checkpointing import run
from ..layers.hierarchical_attention import HierarchicalBlock
from ..layers.join_outputs import join_outputs
from ..layers.padding import content_size, divide_up, is_inside, resample_positions
from ..layers.scout import Scout, sight
from ..layers.selection import Relevance, Selection, TokenSelector, pool_to_cells
from .base_backbone import BaseBackbone, drop_path_rates


@MODELS.register_module()
class FlexViT(BaseBackbone):
    """Vision transformer over a low-resolution map and selected cells of a high-resolution one.

    The first ``num_glance_layers`` layers run on the low-resolution tokens alone. Then cells are chosen, see
    :class:`~mmvisattn.models.layers.selection.Relevance`; their high-resolution tokens pass the same layers, attending
    to the keys and values that the low-resolution tokens had there and to each other. The other layers are
    hierarchical: all tokens attend to all, with keys and values W' of their own for the high resolution. The fused map
    is the low-resolution map upsampled; to chosen tokens what they became is added behind a norm of their own.

    The data preprocessor pads the images of a batch with zeros. These are told from the images: positions span the
    image, cells are chosen in it alone, their number goes by its size, and nothing attends to padding; what an image
    gives does not depend on its batch.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'`` (the sizes of DeiT), or a dict with ``embed_dims``
            (channels), ``depth`` (layers), ``num_heads`` and ``mlp_ratio``. Defaults to ``'base'``.
        patch_size (int): Side of a patch in pixels, the stride of the high-resolution map. Defaults to 16.
        pretrain_size (int): Side in pixels of the images of pretraining, which gives the size of the position
            embedding; a multiple of ``patch_size``. Embeddings of other sizes are resampled on loading. Defaults to
            224.
        zoom (int): How much the image is shrunk for the low-resolution map, an integer from 2. Defaults to 2.
        num_glance_layers (int, optional): Layers before cells are chosen, at least 1. With as many as there are in all,
            the chosen tokens pass them and no hierarchical one; with ``out_indices=(1,)`` besides, the network is a
            plain ViT that does not look at the full image. Defaults to two thirds of all.
        select_mode (str): ``'topk'`` or ``'threshold'``, see
            :class:`~mmvisattn.models.layers.selection.TokenSelector`. Defaults to ``'topk'``.
        select_ratio (float): Share of the cells that ``'topk'`` selects, 0 to 1. Defaults to 0.25.
        select_threshold (float): What the attention of the questions, on a scale of 0…255, must exceed in mode
            ``'threshold'``. Defaults to 48.
        select_explore (float): Share of the selected cells that ``'topk'`` draws at random in training, 0 to 1.
            Defaults to 0.15.
        cell_size (int): Side of a cell in low-resolution tokens. Defaults to 2.
        out_indices (Sequence[int]): What to return: 0 is the fused map, 1 the low-resolution map itself, which alone
            is for a plain ViT. Defaults to (0,).
        frozen_stages (int): Number of the last frozen layer, counted from 1; 0 freezes patch and position embedding
            alone, -1 nothing. Defaults to -1.
        norm_eval (bool): Part of the common contract; there is no BatchNorm here. Defaults to False.
        with_cp (bool): Recompute each layer in the backward instead of keeping its activations. Defaults to False.
        drop_path_rate (float): Drop path rate of the last layer; rises linearly from 0 over the layers. Defaults to 0.
        in_channels (int): Number of channels of the image; weights for RGB are fitted to it as they load. Defaults to
            3.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to truncated normal for
            linear layers.

    Raises:
        UserError: If an argument is out of range, or a checkpoint is of another kind of network.
    """

    other_image_weights = ('relevance.scout.convs.0.weight',)
    # https://github.com/facebookresearch/deit
    arch_settings = {
        'tiny': dict(embed_dims=192, depth=12, num_heads=3, mlp_ratio=4),
        'small': dict(embed_dims=384, depth=12, num_heads=6, mlp_ratio=4),
        'base': dict(embed_dims=768, depth=12, num_heads=12, mlp_ratio=4),
    }

    def __init__(
        self,
        arch: str | dict = 'base',
        patch_size: int = 16,
        pretrain_size: int = 224,
        zoom: int = 2,
        num_glance_layers: int | None = None,
        select_mode: str = 'topk',
        select_ratio: float = 0.25,
        select_threshold: float = 48.0,
        select_explore: float = 0.15,
        cell_size: int = 2,
        out_indices: Sequence[int] = (0,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(frozen_stages, norm_eval, in_channels, init_cfg)
        sizes = self.parse_arch(arch)
        check_numbers(
            'FlexViT',
            **sizes,
            patch_size=patch_size,
            pretrain_size=pretrain_size,
            zoom=zoom,
            cell_size=cell_size,
            drop_path_rate=drop_path_rate,
        )
        dim, depth, num_heads = sizes['embed_dims'], sizes['depth'], sizes['num_heads']
        check_heads('FlexViT', dim, num_heads)
        check_hidden('FlexViT', dim, sizes['mlp_ratio'])
        if num_glance_layers is None:
            num_glance_layers = max(depth * 2 // 3, 1)
        check_numbers('FlexViT', num_glance_layers=num_glance_layers)
        if num_glance_layers > depth:
            raise UserError(
                f'FlexViT: `num_glance_layers` is {num_glance_layers}, with {depth} layers in all; set it to a number '
                f'from 1 (cells are chosen after a glance) to {depth} (no hierarchical layers)'
            )
        if pretrain_size % patch_size:
            raise UserError(
                f'FlexViT: `pretrain_size` is {pretrain_size}; set it to the side in pixels of the images of '
                f'pretraining, a multiple of `patch_size`, {patch_size}'
            )
        self.out_indices = self.check_out_indices(out_indices, 2)
        self.check_frozen_stages(frozen_stages, depth)
        self.patch_size = patch_size
        self.zoom = zoom
        self.num_glance_layers = num_glance_layers
        self.low_only = 0 not in self.out_indices
        if self.low_only and num_glance_layers < depth:
            raise UserError(
                f'FlexViT: `out_indices` is {self.out_indices}; the low-resolution map alone is for a plain ViT: set '
                f'`num_glance_layers={depth}` as well, or have the fused map too, `out_indices=(0, 1)`'
            )
        self.cell_size = cell_size
        self.size_step = patch_size * zoom * cell_size
        self.with_cp = with_cp

        self.patch_embed = PatchEmbed(
            None, patch_size, in_channels, dim, flatten=False, output_fmt='NHWC', strict_img_size=False
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, (pretrain_size // patch_size) ** 2, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            HierarchicalBlock(dim, num_heads, sizes['mlp_ratio'], rates[i], high_res=i >= num_glance_layers)
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if not self.low_only:
            self.sight = sight(patch_size, zoom)
            self.relevance = Relevance(dim, Scout(in_channels, patch_size * zoom // self.sight))
            self.selector = TokenSelector(select_mode, select_ratio, select_threshold, select_explore)
            self.norm_high = nn.LayerNorm(dim, eps=1e-6)
        self._freeze_stages()

    def stage_modules(self, stage: int) -> list[nn.Module | nn.Parameter]:
        """Patch and position embedding (stage 0), or a layer counted from 1; norms and questions go with the last."""
        if stage == 0:
            return [self.patch_embed, self.pos_embed]
        parts: list[nn.Module | nn.Parameter] = [self.blocks[stage - 1]]
        if stage == len(self.blocks):
            parts += [getattr(self, name) for name in ('norm', 'relevance', 'norm_high') if hasattr(self, name)]
        return parts

    def no_weight_decay(self) -> set[str]:
        """The position embedding."""
        return {'pos_embed'}

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Embeddings 0, then the layers, norms and questions last."""
        num_layers = len(self.blocks) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if parts[0] in ('patch_embed', 'pos_embed'):
            return 0, num_layers
        return (int(parts[1]) + 1 if parts[0] == 'blocks' else num_layers - 1), num_layers

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps in ``out_indices``.

        Args:
            x (Tensor): Images, (B, in_channels, H, W), of any size. Inside they are zero-padded at the bottom and right
                to a multiple of ``patch_size * zoom * cell_size``; what comes of the padding is cut off.

        Returns:
            tuple[Tensor, ...]: The fused map (B, C, ceil(H / patch_size), ceil(W / patch_size)) and the low-resolution
            map, whose stride is ``zoom`` times as large, as asked for.
        """
        self.check_input(x, min_size=1)
        if torch.jit.is_tracing():
            x = x.expand(-1, -1, *map(int, x.shape[2:]))  # the graph is for this size, and fails at another
        size = divide_up(x.shape[-2:], self.patch_size)
        low_size = divide_up(size, self.zoom)
        rows, columns = divide_up(low_size, self.cell_size)  # of cells
        low_grid = rows * self.cell_size, columns * self.cell_size
        high_grid = low_grid[0] * self.zoom, low_grid[1] * self.zoom
        shown = self.find_content(x, (rows, columns))
        height, width = (n * self.patch_size for n in high_grid)
        x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))

        low_shown = valid = valid_cells = None
        if shown is not None:
            low_shown = shown * self.cell_size
            valid, valid_cells = is_inside(low_shown, low_grid).flatten(1), is_inside(shown, (rows, columns))
        shrunk = F.avg_pool2d(x, self.zoom)
        low = self.patch_embed(shrunk)  # (B, Hl, Wl, C)
        low = (low + self.positions(low_grid, low_shown)).flatten(1, 2)  # (B, N, C)
        low, context = self.glance(low, valid)
        if not self.low_only:
            seen = shrunk if self.sight == self.zoom else F.avg_pool2d(x, self.sight)
            relevance = pool_to_cells(self.relevance(low, low_grid, valid, seen, low_shown), self.cell_size)
            selection = self.selector(relevance, valid_cells)
            tiling = Tiling(high_grid, (self.cell_size * self.zoom,) * 2)
            index, keep = tiling.locate(selection)  # (B, M)
            high_shown = None if low_shown is None else low_shown * self.zoom
            high = self.embed_cells(x, selection, self.positions(high_grid, high_shown), index)
            low, high = self.commit(low, high, context, self.join_masks(valid, keep, low.shape[1]))

        low_map = self.norm(low).transpose(1, 2).unflatten(2, low_grid)  # (B, C, Hl, Wl)
        outs = []
        if not self.low_only:
            new = self.norm_high(high) * selection.gate(relevance, tiling.cell[0] * tiling.cell[1])
            fused = F.interpolate(self.continue_border(low_map, low_shown), high_grid, mode='bilinear')
            fused = add_tokens(fused.permute(0, 2, 3, 1).flatten(1, 2), index, new, keep)  # (B, Hh·Wh, C)
            fused = fused.unflatten(1, high_grid).permute(0, 3, 1, 2)
            outs.append(fused[:, :, : size[0], : size[1]].contiguous())
        if 1 in self.out_indices:
            outs.append(low_map[:, :, : low_size[0], : low_size[1]].contiguous())
        return join_outputs(outs, self.training)

    def glance(self, low: Tensor, valid: Tensor | None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The first layers, on the low-resolution tokens alone.

        Args:
            low (Tensor): (B, N, C).
            valid (Tensor | None): False for tokens that come of padding, (B, N); None if there are none.

        Returns:
            tuple[Tensor, list[tuple[Tensor, Tensor]]]: The tokens (B, N, C), and their keys and values in each layer,
            each (B, heads, N, d).
        """
        context = []
        for block in self.blocks[: self.num_glance_layers]:
            low, own = run(block, low, None, valid, with_cp=self.with_cp and self.training)
            # These are views of a tensor with the queries in it, which the backward keeps anyway.
            if not torch.is_grad_enabled() and not is_traced():
                own = own[0].contiguous(), own[1].contiguous()
            context.append(own)
        return low, context

    def commit(
        self, low: Tensor, high: Tensor, context: list[tuple[Tensor, Tensor]], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same layers for the chosen tokens, and the hierarchical ones for all.

        Args:
            low (Tensor): Low-resolution tokens after the glance, (B, N, C).
            high (Tensor): Patches of the chosen cells, (B, M, C).
            context (list[tuple[Tensor, Tensor]]): Keys and values of the glance, layer by layer; emptied, since they
                are large and of no more use.
            mask (Tensor | None): True where a token may be looked at, (B, N + M); None where all may.

        Returns:
            tuple[Tensor, Tensor]: Both, refined.
        """
        with_cp = self.with_cp and self.training
        for block in self.blocks[: self.num_glance_layers]:
            high, _ = run(block, high, context.pop(0), mask, with_cp=with_cp)
        both = torch.cat([low, high], 1)
        for block in self.blocks[self.num_glance_layers :]:
            both = run(block.forward_both, both, low.shape[1], mask, with_cp=with_cp)
        return both[:, : low.shape[1]], both[:, low.shape[1] :]

    def find_content(self, x: Tensor, cell_grid: tuple[int, int]) -> Tensor | None:
        """What of a batch is image.

        Args:
            x (Tensor): Images, (B, in_channels, H, W).
            cell_grid (tuple[int, int]): Rows and columns of cells.

        Returns:
            Tensor | None: Rows and columns of cells of each image, (B, 2), or None where all cells have a part in it.
        """
        side = self.patch_size * self.zoom * self.cell_size
        shown = (content_size(x) + side - 1) // side
        # Without a mask attention is faster. A graph cannot choose, since it must not depend on what an image shows.
        if not is_traced() and x.device.type != 'meta' and (shown == shown.new_tensor(cell_grid)).all():
            return None
        return shown

    def positions(self, grid: tuple[int, int], shown: Tensor | None) -> Tensor:
        """Position embeddings; they span the image at either resolution.

        Args:
            grid (tuple[int, int]): Rows and columns of tokens.
            shown (Tensor | None): Rows and columns of tokens that each image spans, (B, 2); None where it spans all.

        Returns:
            Tensor: (B or 1, *grid, C).
        """
        if shown is None:
            return resample_abs_pos_embed(self.pos_embed, list(grid), num_prefix_tokens=0).unflatten(1, grid)
        with no_autocast(self.pos_embed.device):
            side = math.isqrt(self.pos_embed.shape[1])
            return resample_positions(self.pos_embed[0].unflatten(0, (side, side)), shown, grid)

    def embed_cells(self, x: Tensor, selection: Selection, positions: Tensor, index: Tensor) -> Tensor:
        """Patches of the chosen cells, with their positions.

        Args:
            x (Tensor): Padded images, (B, in_channels, H, W).
            selection (Selection): K cells of each image.
            positions (Tensor): Positions of all tokens, (B or 1, Hh, Wh, C).
            index (Tensor): Numbers of the tokens of the cells, (B, M).

        Returns:
            Tensor: (B, M, C).
        """
        side = self.cell_size * self.zoom * self.patch_size
        cells = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, in_channels, rows, side, columns, side)
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)  # (B, cells, pixels of all channels)
        pixels = gather_tokens(cells, selection.indices).unflatten(2, (-1, side, side)).flatten(0, 1)
        high = self.patch_embed(pixels)  # (B·K, rows, columns, C)
        positions = gather_tokens(positions.flatten(1, 2).expand(x.shape[0], -1, -1), index)
        return high.reshape(positions.shape) + positions

    @staticmethod
    def join_masks(valid: Tensor | None, keep: Tensor | None, num_low: int) -> Tensor | None:
        """What may be looked at of the low resolution and of the chosen cells, (B, N + M); None where all may."""
        if valid is None:
            return None if keep is None else F.pad(keep, (num_low, 0), value=True)
        assert keep is not None  # batches with padding have images with fewer cells than others
        return torch.cat([valid, keep], 1)

    @staticmethod
    def continue_border(maps: Tensor, shown: Tensor | None) -> Tensor:
        """Maps (B, C, rows, columns) whose padding repeats the border of the image, (B, 2) rows and columns of it."""
        if shown is None:
            return maps
        rows, columns = (
            torch.arange(n, device=maps.device).minimum(shown[:, i, None] - 1) for i, n in enumerate(maps.shape[2:])
        )
        batch = torch.arange(maps.shape[0], device=maps.device)[:, None, None]
        return maps.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)

    def checkpoint_filter(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of timm's ViT and DeiT made ours.

        Prefix tokens are left out of the position embedding, which is resampled to ``pretrain_size``; layer scales are
        multiplied into the projections that they follow; W' and the norm of the high-resolution map are copies.

        Raises:
            UserError: If patches are of another size, or the layers hold parts that a plain ViT does not have.
        """
        weights = dict(super().checkpoint_filter(state_dict))
        if self.patch_weight not in weights or 'pos_embed' not in weights:
            return weights
        own = self.state_dict()
        patch = weights['patch_embed.proj.weight'].shape[-1]
        if patch != self.patch_size:
            raise UserError(
                f'the checkpoint has patches of {patch}×{patch} pixels and FlexViT of {self.patch_size}×'
                f'{self.patch_size}; load weights of a network with patches of {self.patch_size} pixels (timm names '
                f'them `patch{self.patch_size}`), or set `patch_size={patch}`'
            )
        weights['pos_embed'] = self._resample(weights['pos_embed'])
        for i in range(len(self.blocks)):
            name = f'blocks.{i}.'
            for scale, projection in (('ls1.gamma', 'attn.proj'), ('ls2.gamma', 'mlp.fc2')):
                gamma = weights.pop(name + scale, None)
                if gamma is not None:
                    weight = weights[f'{name}{projection}.weight']
                    weights[f'{name}{projection}.weight'] = weight * gamma[:, None]
                    weights[f'{name}{projection}.bias'] = weights[f'{name}{projection}.bias'] * gamma
            for leaf in ('weight', 'bias'):
                source, copy = f'{name}attn.qkv.{leaf}', f'{name}attn.kv_high.{leaf}'
                if i < self.num_glance_layers:
                    weights.pop(copy, None)  # of a FlexViT with fewer layers at a glance
                elif source in weights:
                    weights.setdefault(copy, weights[source][len(weights[source]) // 3 :])
            foreign = [key for key in weights if key.startswith(name) and key not in own]
            if foreign:
                raise UserError(
                    f'the checkpoint has {foreign[0]!r}, a part that the layers of FlexViT lack, so its features would '
                    'be others; load weights of a plain ViT or DeiT, such as timm://deit_base_patch16_224'
                )
        for leaf in ('weight', 'bias'):
            if f'norm_high.{leaf}' in own and f'norm.{leaf}' in weights:
                weights.setdefault(f'norm_high.{leaf}', weights[f'norm.{leaf}'])
        return weights

    def _resample(self, pos_embed: Tensor) -> Tensor:
        # The grid is square; before it stand the class token and others of its kind, where they have a position.
        side = math.isqrt(pos_embed.shape[1])
        grid = [math.isqrt(self.pos_embed.shape[1])] * 2
        return resample_abs_pos_embed(pos_embed[:, -side * side :], grid, num_prefix_tokens=0)
