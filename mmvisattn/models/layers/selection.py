"""Which high-resolution tokens are worth attending to: those under the most relevant low-resolution tokens.

After `FlexAttention for Efficient High-Resolution Vision-Language Models <https://arxiv.org/abs/2407.20228>`_ (Li et
al., 2024), where the question asked of the image attends to what it is about, and a token is as relevant as the
attention it receives. An image alone asks no question, and the attention that its tokens receive from each other says
little about where objects are; that a token pays attention to other things than its neighbours says more.

The map of relevance is normalised, max-pooled to coarse cells, so that regions stay whole, and the cells are chosen by
a threshold, as in the paper, or by a fixed share. Nothing here passes a gradient.
"""

from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError, nearest
from ...ops.common import is_exported
from ..checks import check_numbers
from .hierarchical_attention import attention_map

SELECT_MODES = ('topk', 'threshold', 'random')
# Received attention: at most so many queries a side of a block, and at least so many blocks a side of the map.
MAX_QUERY_BLOCK = 4
MIN_QUERY_BLOCKS = 8
# Contrast: blocks of keys a side of the map, unless it has fewer keys.
KEY_BLOCKS = 8


# Relevance: fused attention does not give its map away, and to form it would cost as much again. Both estimates stand
# on averages over blocks of tokens.


def received_attention(attention: Tensor) -> Tensor:
    """The attention that each key receives, summed over heads and queries: (B, heads, Q, N) → (B, N)."""
    return attention.detach().sum((1, 2))


def attention_contrast(attention: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> Tensor:
    """How much the attention that a token pays differs from what is paid around it.

    The sum over heads and keys of the distance from the mean over 3×3 tokens.

    Args:
        attention (Tensor): The attention that each query pays, (B, heads, keys, N): queries last.
        grid (tuple[int, int]): Rows and columns of the queries, their product N.
        valid (Tensor, optional): False for tokens that come of padding, boolean, (rows, columns) or (B, rows, columns);
            they are no neighbours.

    Returns:
        Tensor: Relevance, (B, N).
    """
    maps = attention.detach().flatten(1, 2).unflatten(2, grid)  # (B, heads·keys, rows, columns)
    if valid is None:
        around = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
    else:
        weight = valid.to(maps.dtype).unsqueeze(-3)
        around = F.avg_pool2d(maps * weight, 3, 1, 1) / F.avg_pool2d(weight, 3, 1, 1).clamp(min=1e-6)
    return (maps - around).abs().sum(1).flatten(1)


def estimate_received_attention(q: Tensor, k: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> Tensor:
    """Received attention from averages over blocks of queries; for the arguments see :class:`Relevance`.

    Neighbours on the grid ask similar questions, so one softmax of their mean query stands for a block. With 4×4
    blocks, which a map of 32 tokens a side has, it costs a 32nd of the map and its product with the values; smaller
    maps have smaller blocks. Every query counts, so no token gains by its position, as under sampling, where those next
    to a sampled one would. Padding counts too: it asks and is asked in the attention itself.
    """
    block = [min(MAX_QUERY_BLOCK, max(n // MIN_QUERY_BLOCKS, 1)) for n in grid]
    # At the border the average is over the queries that exist.
    pooled = F.avg_pool2d(_as_maps(q, grid), block, ceil_mode=True, count_include_pad=False)
    return received_attention(attention_map(_as_tokens(pooled, q), k))


def estimate_attention_contrast(q: Tensor, k: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> Tensor:
    """Contrast of the attention that is paid to the mean keys of 8×8 blocks; see :class:`Relevance`."""
    pooled = F.adaptive_avg_pool2d(_as_maps(k, grid), (min(KEY_BLOCKS, grid[0]), min(KEY_BLOCKS, grid[1])))
    return attention_contrast(attention_map(q, _as_tokens(pooled, k)).mT, grid, valid)


def _as_maps(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, heads, N, d) → (B·heads, d, rows, columns)."""
    return x.flatten(0, 1).transpose(1, 2).unflatten(2, grid)


def _as_tokens(maps: Tensor, like: Tensor) -> Tensor:
    """(B·heads, d, rows, columns) → (B, heads, N, d), with the B and heads of ``like``."""
    return maps.flatten(2).transpose(1, 2).unflatten(0, like.shape[:2])


ESTIMATES = {'contrast': estimate_attention_contrast, 'received': estimate_received_attention}


class Relevance(nn.Module):
    """How relevant each low-resolution token is, told by queries and keys of the layer before.

    A module, so that a forward hook sees what each layer goes by.

    Args:
        kind (str): ``'contrast'``, that the attention which a token pays differs from that of its neighbours, or
            ``'received'``, the attention that it receives.

    Raises:
        UserError: If the kind is unknown.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in ESTIMATES:
            raise UserError(f'`relevance` is {kind!r}{nearest(kind, ESTIMATES)}; set it to one of {tuple(ESTIMATES)}')
        self.kind = kind

    @torch.no_grad()
    def forward(self, q: Tensor, k: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> Tensor:
        """Estimate the relevance.

        Args:
            q (Tensor): Queries of the low-resolution tokens in raster order, (B, heads, N, d).
            k (Tensor): Their keys, (B, heads, N, d).
            grid (tuple[int, int]): Rows and columns of the tokens, their product N.
            valid (Tensor, optional): False for tokens that come of padding, boolean, (rows, columns) or (B, rows,
                columns); None if there are none.

        Returns:
            Tensor: (B, rows, columns), in float32 at least.
        """
        return ESTIMATES[self.kind](q, k, grid, valid).unflatten(1, grid)

    def extra_repr(self) -> str:
        """Settings as shown in the printed network."""
        return f'kind={self.kind}'


class Selection(NamedTuple):
    """The chosen cells of each image of a batch.

    Args:
        indices (Tensor): Numbers of the cells in raster order, distinct within an image, (B, K).
        keep (Tensor | None): False where an image has chosen fewer than K cells and the entry only fills up, (B, K);
            None where all count.
    """

    indices: Tensor
    keep: Tensor | None

    def mask(self, shape: tuple[int, int]) -> Tensor:
        """The chosen cells as a map: boolean, (B, rows, columns)."""
        chosen = self.indices.new_zeros(self.indices.shape[0], shape[0] * shape[1], dtype=torch.bool)
        keep = torch.ones_like(self.indices, dtype=torch.bool) if self.keep is None else self.keep
        return chosen.scatter(1, self.indices, keep).unflatten(1, shape)


def min_max(relevance: Tensor, valid: Tensor | None = None) -> Tensor:
    """Each map brought to 0…1, (B, rows, columns); a constant map becomes zero, and so does padding.

    Args:
        relevance (Tensor): Maps, (B, rows, columns).
        valid (Tensor, optional): False where a token is only padding, which counts for nothing, boolean, (B, rows,
            columns).
    """
    if valid is not None:
        least = relevance.masked_fill(~valid, float('inf')).amin((1, 2), keepdim=True)
        relevance = torch.where(valid, relevance, least)
    low, high = relevance.amin((1, 2), keepdim=True), relevance.amax((1, 2), keepdim=True)
    spread = high - low
    return (relevance - low) / torch.where(spread > 0, spread, 1)


def pool_to_cells(relevance: Tensor, cell_size: int) -> Tensor:
    """The largest relevance in each cell, the last ones of a row or column being cut short.

    Args:
        relevance (Tensor): Maps, (B, rows, columns).
        cell_size (int): Side of a cell in tokens.

    Returns:
        Tensor: Maps of cells, (B, cell rows, cell columns).
    """
    return F.max_pool2d(relevance.unsqueeze(1), cell_size, ceil_mode=True).squeeze(1)


class TokenSelector(nn.Module):
    """Choose cells by relevance. A module, so that a forward hook sees what each layer chooses.

    Args:
        mode (str): ``'topk'`` takes the same share of cells of every image, so shapes are static. ``'threshold'`` takes
            the cells above a threshold, as the paper does: as many as an image asks for, filled up and masked in a
            batch. ``'random'`` takes a share by chance, the baseline that relevance has to beat.
        ratio (float): Share of the cells that ``'topk'`` and ``'random'`` take, 0 to 1.
        threshold (float): What the relevance, brought to 0…255, must exceed in mode ``'threshold'``.
        cell_size (int): Side of a cell in low-resolution tokens.

    Raises:
        UserError: If the mode is unknown, or another argument is out of range.
    """

    def __init__(self, mode: str = 'topk', ratio: float = 0.25, threshold: float = 48.0, cell_size: int = 1) -> None:
        super().__init__()
        if mode not in SELECT_MODES:
            raise UserError(f'`select_mode` is {mode!r}{nearest(mode, SELECT_MODES)}; set it to one of {SELECT_MODES}')
        check_numbers('FlexAttention', select_ratio=ratio, select_threshold=threshold, cell_size=cell_size)
        self.mode = mode
        self.ratio = ratio
        self.threshold = threshold
        self.cell_size = cell_size

    @torch.no_grad()
    def forward(self, relevance: Tensor, valid: Tensor | None = None, valid_cells: Tensor | None = None) -> Selection:
        """Choose cells.

        Args:
            relevance (Tensor): Relevance of each low-resolution token, (B, rows, columns).
            valid (Tensor, optional): False where a token is only padding, boolean, (B, rows, columns); such tokens are
                not looked at.
            valid_cells (Tensor, optional): False where a cell holds nothing but padding, see :meth:`choose`.

        Returns:
            Selection: The selection, detached.
        """
        return self.choose(pool_to_cells(min_max(relevance, valid), self.cell_size), valid_cells)

    def choose(self, scores: Tensor, valid_cells: Tensor | None = None) -> Selection:
        """Choose the cells of the highest scores.

        Args:
            scores (Tensor): Scores from 0 to 1, (B, cell rows, cell columns).
            valid_cells (Tensor, optional): False where a cell holds nothing but padding, boolean, (B, cell rows, cell
                columns); such cells are never chosen, and the share is one of the others. None where there are none.

        Returns:
            Selection: The selection.
        """
        scores = scores.flatten(1)  # (B, cells)
        if self.mode == 'random':
            scores = torch.rand_like(scores)
        if valid_cells is not None:
            scores = scores.masked_fill(~valid_cells.flatten(1), -1)
        if self.mode == 'threshold':
            return self._above_threshold(scores)
        # A size is a tensor while torch.jit.trace runs; the graph keeps the number.
        num_cells: Any = scores.shape[1]
        count = self.count(int(num_cells) if isinstance(num_cells, Tensor) else num_cells)
        if valid_cells is None:
            return Selection(scores.topk(count, sorted=False).indices, None)
        counts = self.count(valid_cells.flatten(1).sum(1, keepdim=True).double())  # (B, 1)
        return Selection(scores.topk(count).indices, torch.arange(count, device=scores.device) < counts)

    @overload
    def count(self, num_cells: int) -> int: ...
    @overload
    def count(self, num_cells: Tensor) -> Tensor: ...
    def count(self, num_cells: int | Tensor) -> int | Tensor:
        """How many of a number of cells ``'topk'`` and ``'random'`` take; at least one unless the ratio is 0."""
        least = int(self.ratio > 0)
        if isinstance(num_cells, Tensor):
            return (self.ratio * num_cells).round().clamp(min=least)
        return max(round(self.ratio * num_cells), least)

    def _above_threshold(self, scores: Tensor) -> Selection:
        if is_exported():
            raise UserError(
                "`select_mode='threshold'` cannot be exported: how many cells it takes (`max`) depends on the image, "
                "and a graph keeps one number; set `select_mode='topk'`"
            )
        chosen = scores * 255 > self.threshold
        most = int(chosen.sum(1).max())
        # Those chosen come first, in raster order; what fills up is distinct from them.
        index = chosen.to(torch.uint8).argsort(descending=True, stable=True)[:, :most]
        return Selection(index, chosen.gather(1, index))

    def extra_repr(self) -> str:
        """Settings as shown in the printed network."""
        amount = f'threshold={self.threshold}' if self.mode == 'threshold' else f'ratio={self.ratio}'
        return f'mode={self.mode}, {amount}, cell_size={self.cell_size}'
