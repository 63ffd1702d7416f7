"""FlexViT, a vision transformer that looks closely only where its attention points.

It brings `FlexAttention <https://arxiv.org/abs/2407.20228>`_ (Li et al., 2024), made for vision-language models, to
dense prediction. A plain ViT or DeiT runs on the image shrunk by ``zoom``; the full image is a second, high-resolution
map of tokens. Each layer attends to all low-resolution tokens and to those cells of the high-resolution map that the
attention of the layer before points at, refines these too, and writes them back. Weights of timm's ViT and DeiT load as
they are.
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
from ..layers.cells import Tiling, attend_and_write_back
from ..layers.checkpointing import run
from ..layers.hierarchical_attention import HierarchicalBlock
from ..layers.join_outputs import join_outputs
from ..layers.padding import content_size, divide_up, is_inside, resample_positions
from ..layers.selection import Relevance, TokenSelector
from .base_backbone import BaseBackbone, drop_path_rates


@MODELS.register_module()
class FlexViT(BaseBackbone):
    """Vision transformer over a low-resolution map and selected cells of a high-resolution one.

    The first ``num_plain_layers`` layers run on the low-resolution tokens and, window by window, on the high-resolution
    ones; a window is as large as the low-resolution map. All others are hierarchical: layer l attends to the low
    resolution and to the cells that layer l − 1 selected. High-resolution tokens that are not selected stay as they
    are.

    Images of different size in a batch are told from the zeros that the data preprocessor pads them with: positions
    span the image, cells are selected in it alone, and their number goes by its size. What is left to the padding is
    that tokens attend to it and that the windows of the plain layers span it. The features of a picture of 512×512
    pixels in a batch of 512×768 differ by a quarter from those it has alone (``'tiny'``, random weights, noise).

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'`` (the sizes of DeiT), or a dict with ``embed_dims``
            (channels), ``depth`` (layers), ``num_heads`` and ``mlp_ratio``. Defaults to ``'base'``.
        patch_size (int): Side of a patch in pixels, the stride of the high-resolution map. Defaults to 16.
        pretrain_size (int): Side in pixels of the images of pretraining, which gives the size of the position
            embedding; a multiple of ``patch_size``. Embeddings of other sizes are resampled on loading. Defaults to
            224.
        zoom (int): How much the image is shrunk for the low-resolution map, an integer from 2. Defaults to 2.
        num_plain_layers (int, optional): Layers before the first hierarchical one, at least 1. With as many as there
            are in all, the network is a plain ViT, which with ``out_indices=(1,)`` does not look at the full image.
            Defaults to a quarter of all.
        relevance (str): What makes a low-resolution token relevant: ``'contrast'``, that its attention differs from
            that of its neighbours, or ``'received'``, the attention it receives, as in the paper. Defaults to
            ``'contrast'``.
        select_mode (str): ``'topk'``, ``'threshold'`` or ``'random'``, see
            :class:`~mmvisattn.models.layers.selection.TokenSelector`. Defaults to ``'topk'``.
        select_ratio (float): Share of the cells that ``'topk'`` and ``'random'`` select, 0 to 1. Defaults to 0.25.
        select_threshold (float): What the relevance, on a scale of 0…255, must exceed in mode ``'threshold'``. Defaults
            to 48.
        cell_size (int): Side of a cell in low-resolution tokens. Defaults to 2.
        out_indices (Sequence[int]): What to return: 0 is the high-resolution map fused with the upsampled
            low-resolution map, 1 the low-resolution map itself. Defaults to (0,).
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

    bound_to_size = 'the cells of the map (`Tiling`) and the number of those that are selected (`topk`)'
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
        num_plain_layers: int | None = None,
        relevance: str = 'contrast',
        select_mode: str = 'topk',
        select_ratio: float = 0.25,
        select_threshold: float = 48.0,
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
        if num_plain_layers is None:
            num_plain_layers = max(depth // 4, 1)
        check_numbers('FlexViT', num_plain_layers=num_plain_layers)
        if num_plain_layers > depth:
            raise UserError(
                f'FlexViT: `num_plain_layers` is {num_plain_layers}, with {depth} layers in all; set it to a number '
                f'from 1 (a plain layer makes the first selection) to {depth} (a plain ViT)'
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
        self.num_plain_layers = num_plain_layers
        self.low_only = num_plain_layers == depth and 0 not in self.out_indices
        self.cell_size = cell_size
        self.with_cp = with_cp

        self.patch_embed = PatchEmbed(
            None, patch_size, in_channels, dim, flatten=False, output_fmt='NHWC', strict_img_size=False
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, (pretrain_size // patch_size) ** 2, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            HierarchicalBlock(dim, num_heads, sizes['mlp_ratio'], rates[i], high_res=i >= num_plain_layers)
            for i in range(depth)
        )
        self.relevance = Relevance(relevance)
        self.selector = TokenSelector(select_mode, select_ratio, select_threshold, cell_size)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if 0 in self.out_indices:
            self.norm_high = nn.LayerNorm(dim, eps=1e-6)
        self._freeze_stages()

    def stage_modules(self, stage: int) -> list[nn.Module | nn.Parameter]:
        """Patch and position embedding (stage 0), or a layer counted from 1; the norms go with the last."""
        if stage == 0:
            return [self.patch_embed, self.pos_embed]
        parts: list[nn.Module | nn.Parameter] = [self.blocks[stage - 1]]
        if stage == len(self.blocks):
            parts += [getattr(self, name) for name in ('norm', 'norm_high') if hasattr(self, name)]
        return parts

    def no_weight_decay(self) -> set[str]:
        """The position embedding."""
        return {'pos_embed'}

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Embeddings 0, then the layers, and the norms last."""
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
        shown, valid, valid_cells = self.find_content(x, low_grid)
        height, width = (n * self.patch_size for n in high_grid)
        x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))

        low = self.embed(F.avg_pool2d(x, self.zoom), shown)  # (B, Hl, Wl, C)
        high = None if self.low_only else self.embed(x, None if shown is None else shown * self.zoom)
        low, high, q, k = self.forward_plain(low.flatten(1, 2), high, low_grid)  # low (B, N, C)

        tiling = Tiling(high_grid, (self.cell_size * self.zoom,) * 2)
        if high is not None:
            cells = tiling.split(high)  # (B, cells, t, C)
        for block in self.blocks[self.num_plain_layers :]:
            selection = self.selector(self.relevance(q, k, low_grid, valid), valid, valid_cells)
            low, cells, q, k = attend_and_write_back(
                block, low, cells, selection, with_cp=self.with_cp and self.training
            )

        low = self.norm(low).transpose(1, 2).unflatten(2, low_grid)  # (B, C, Hl, Wl)
        outs = []
        if 0 in self.out_indices:
            high = self.norm_high(tiling.join(cells)).permute(0, 3, 1, 2)
            upsampled = F.interpolate(low, high_grid, mode='bilinear')
            outs.append((high + upsampled)[:, :, : size[0], : size[1]].contiguous())
        if 1 in self.out_indices:
            outs.append(low[:, :, : low_size[0], : low_size[1]].contiguous())
        return join_outputs(outs, self.training)

    def find_content(
        self, x: Tensor, low_grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor | None] | tuple[None, None, None]:
        """What of a batch is image, for the positions and the selection; nothing where all is.

        Args:
            x (Tensor): Images, (B, in_channels, H, W).
            low_grid (tuple[int, int]): Rows and columns of low-resolution tokens of the padded images.

        Returns:
            tuple[Tensor, Tensor, Tensor | None] | tuple[None, None, None]: Rows and columns of low-resolution tokens of
            each image, (B, 2); the tokens that lie in it, (B, rows, columns); the cells that do, (B, cell rows, cell
            columns), or None where each cell has a part in it.
        """
        shown = -(-content_size(x) // (self.patch_size * self.zoom))
        cell_grid = divide_up(low_grid, self.cell_size)
        shown_cells = -(-shown // self.cell_size)
        # Without a mask attention is faster. A graph cannot choose, since it must not depend on what an image shows.
        if not is_traced() and x.device.type != 'meta':
            if (shown == shown.new_tensor(low_grid)).all():
                return None, None, None
            if (shown_cells == shown_cells.new_tensor(cell_grid)).all():
                return shown, is_inside(shown, low_grid), None
        return shown, is_inside(shown, low_grid), is_inside(shown_cells, cell_grid)

    def embed(self, x: Tensor, shown: Tensor | None = None) -> Tensor:
        """Patches with their positions.

        Positions span the image at either resolution, so a token and those below it have the same place.

        Args:
            x (Tensor): Padded images, (B, in_channels, H, W).
            shown (Tensor, optional): Rows and columns of patches that each image spans, (B, 2); None where it spans
                all.

        Returns:
            Tensor: (B, H / patch_size, W / patch_size, C).
        """
        x = self.patch_embed(x)
        grid = x.shape[1], x.shape[2]
        if shown is None:
            return x + resample_abs_pos_embed(self.pos_embed, list(grid), num_prefix_tokens=0).unflatten(1, grid)
        with no_autocast(x.device):
            side = math.isqrt(self.pos_embed.shape[1])
            return x + resample_positions(self.pos_embed[0].unflatten(0, (side, side)), shown, grid)

    def forward_plain(
        self, low: Tensor, high: Tensor | None, low_grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The layers before the first hierarchical one.

        Args:
            low (Tensor): Low-resolution tokens, (B, N, C).
            high (Tensor | None): High-resolution tokens, (B, Hl·zoom, Wl·zoom, C), or None.
            low_grid (tuple[int, int]): Hl and Wl, rows and columns of the low-resolution tokens.

        Returns:
            tuple[Tensor, Tensor | None, Tensor, Tensor]: The same two, and queries and keys of the low-resolution
            tokens in the last layer, each (B, heads, N, d).
        """
        with_cp = self.with_cp and self.training
        windows = None
        if high is not None:
            tiling = Tiling((high.shape[1], high.shape[2]), low_grid)
            windows = tiling.split(high).flatten(0, 1)  # (B·zoom², N, C)
        for block in self.blocks[: self.num_plain_layers]:
            low, _, q, k = run(block, low, with_cp=with_cp)
            if windows is not None:
                windows, *_ = run(block, windows, with_cp=with_cp)
        if windows is not None:
            high = tiling.join(windows.unflatten(0, (low.shape[0], -1)))
        return low, high, q, k

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
                if i < self.num_plain_layers:
                    weights.pop(copy, None)  # of a FlexViT with fewer plain layers
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
