"""Which high-resolution tokens are worth attending to: those under the most relevant low-resolution tokens.

After `FlexAttention for Efficient High-Resolution Vision-Language Models <https://arxiv.org/abs/2407.20228>`_ (Li et
al., 2024). The map of relevance is normalised, max-pooled to coarse cells, so that regions stay whole, and the cells
are chosen by a threshold, as in the paper, or by a fixed share. Nothing here passes a gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError, nearest
from ...ops.common import is_exported
from ..checks import check_numbers

SELECT_MODES = ('topk', 'threshold', 'random')


class Selection(NamedTuple):
    """The chosen cells of each image of a batch.

    Args:
        index: Numbers of the cells in raster order, distinct within an image, (B, K).
        keep: False where an image has chosen fewer than K cells and the entry only fills up, (B, K); None where all
            count.
    """

    index: Tensor
    keep: Tensor | None

    def mask(self, shape: tuple[int, int]) -> Tensor:
        """The chosen cells as a map: boolean, (B, rows, columns)."""
        chosen = self.index.new_zeros(self.index.shape[0], shape[0] * shape[1], dtype=torch.bool)
        keep = torch.ones_like(self.index, dtype=torch.bool) if self.keep is None else self.keep
        return chosen.scatter(1, self.index, keep).unflatten(1, shape)


def min_max(relevance: Tensor, real: Tensor | None = None) -> Tensor:
    """Each map brought to 0…1, (B, rows, columns); a constant map becomes zero, and so does padding.

    Args:
        relevance: Maps, (B, rows, columns).
        real: False where a token is only padding, which counts for nothing, boolean, (B, rows, columns).
    """
    if real is not None:
        least = relevance.masked_fill(~real, float('inf')).amin((1, 2), keepdim=True)
        relevance = torch.where(real, relevance, least)
    low, high = relevance.amin((1, 2), keepdim=True), relevance.amax((1, 2), keepdim=True)
    spread = high - low
    return (relevance - low) / torch.where(spread > 0, spread, 1)


def pool_to_cells(relevance: Tensor, cells: int | tuple[int, int]) -> Tensor:
    """The largest relevance in each cell.

    Args:
        relevance: Maps, (B, rows, columns).
        cells: Side of a cell in tokens, the last ones of a row or column being cut short; or the number of rows and
            columns of cells, which overlap where the map is not a multiple (9×9 in the paper's release).

    Returns:
        Maps of cells, (B, cell rows, cell columns).
    """
    maps = relevance.unsqueeze(1)
    if isinstance(cells, int):
        return F.max_pool2d(maps, cells, ceil_mode=True).squeeze(1)
    return F.adaptive_max_pool2d(maps, cells).squeeze(1)


def upsample_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A boolean map of cells, (B, rows, columns), brought to a finer grid by nearest neighbour: (B, *size)."""
    return F.interpolate(mask[:, None].to(torch.uint8), size, mode='nearest').squeeze(1).bool()


class TokenSelector(nn.Module):
    """Choose cells by relevance. A module, so that a forward hook sees what each layer chooses.

    Args:
        mode: ``'topk'`` takes the same share of cells of every image, so shapes are static. ``'threshold'`` takes the
            cells above a threshold, as the paper does: as many as an image asks for, filled up and masked in a batch.
            ``'random'`` takes a share by chance, the baseline that relevance has to beat.
        ratio: Share of the cells that ``'topk'`` and ``'random'`` take, 0 to 1.
        threshold: What the relevance, brought to 0…255, must exceed in mode ``'threshold'``.

    Raises:
        UserError: If the mode is unknown, or ratio or threshold is out of range.
    """

    def __init__(self, mode: str = 'topk', ratio: float = 0.25, threshold: float = 48.0) -> None:
        super().__init__()
        if mode not in SELECT_MODES:
            raise UserError(f'`select_mode` is {mode!r}{nearest(mode, SELECT_MODES)}; set it to one of {SELECT_MODES}')
        check_numbers('FlexAttention', select_ratio=ratio, select_threshold=threshold)
        self.mode = mode
        self.ratio = ratio
        self.threshold = threshold

    @torch.no_grad()
    def forward(
        self,
        relevance: Tensor,
        cells: int | tuple[int, int],
        real: Tensor | None = None,
        real_cells: Tensor | None = None,
    ) -> Selection:
        """Choose cells.

        Args:
            relevance: Relevance of each low-resolution token, (B, rows, columns).
            cells: Side of a cell, or number of rows and columns of cells, see :func:`pool_to_cells`.
            real: False where a token is only padding, boolean, (B, rows, columns); such tokens are not looked at.
            real_cells: False where a cell holds nothing but padding, boolean, (B, cell rows, cell columns); such cells
                are never chosen, and the share is one of the others. None where there are none.

        Returns:
            The selection, detached.
        """
        scores = pool_to_cells(min_max(relevance, real), cells).flatten(1)  # (B, cells)
        if self.mode == 'random':
            scores = torch.rand_like(scores)
        if real_cells is not None:
            scores = scores.masked_fill(~real_cells.flatten(1), -1)
        if self.mode == 'threshold':
            return self._above_threshold(scores)
        num_cells = scores.shape[1]
        # A size is a tensor while torch.jit.trace runs; the graph keeps the number.
        count = self.count(int(num_cells) if isinstance(num_cells, Tensor) else num_cells)
        if real_cells is None:
            return Selection(scores.topk(count, sorted=False).indices, None)
        counts = self.count(real_cells.flatten(1).sum(1, keepdim=True).double())  # (B, 1)
        return Selection(scores.topk(count).indices, torch.arange(count, device=scores.device) < counts)

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
        return f'mode={self.mode}, ' + (
            f'threshold={self.threshold}' if self.mode == 'threshold' else f'ratio={self.ratio}'
        )


@dataclass(frozen=True)
class CellGrid:
    """How a map of tokens is cut into cells of the same size.

    Cells at the right and bottom may reach beyond the map; there they hold zeros, told apart by :meth:`real_tokens`.

    Args:
        size: Rows and columns of tokens.
        cell: Rows and columns of tokens in a cell, t in all.
    """

    size: tuple[int, int]
    cell: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return -(-self.size[0] // self.cell[0]), -(-self.size[1] // self.cell[1])

    def split(self, maps: Tensor) -> Tensor:
        """A map cut into cells, both in raster order: (B, H, W, C) → (B, cells, t, C)."""
        (rows, columns), (height, width) = self.shape, self.cell
        bottom, right = rows * height - self.size[0], columns * width - self.size[1]
        if bottom or right:
            maps = F.pad(maps, (0, 0, 0, right, 0, bottom))
        maps = maps.unflatten(2, (columns, width)).unflatten(1, (rows, height))  # (B, rows, height, columns, width, C)
        return maps.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, cells: Tensor) -> Tensor:
        """The inverse of :meth:`split`: (B, cells, t, C) → (B, H, W, C)."""
        maps = cells.unflatten(2, self.cell).unflatten(1, self.shape).transpose(2, 3)
        maps = maps.flatten(3, 4).flatten(1, 2)  # (B, rows·height, columns·width, C)
        return maps[:, : self.size[0], : self.size[1]]

    def real_tokens(self, device: torch.device) -> Tensor | None:
        """True where a cell holds a token of the map, (cells, t); None where no cell reaches beyond it."""
        if all(size % cell == 0 for size, cell in zip(self.size, self.cell)):
            return None
        return self.split(torch.ones(1, *self.size, 1, dtype=torch.bool, device=device))[0, :, :, 0]


def gather_cells(cells: Tensor, index: Tensor) -> Tensor:
    """The tokens of the chosen cells: (B, cells, t, C) and (B, K) → (B, K·t, C)."""
    taken = cells.flatten(0, 1).index_select(0, _flat_index(cells, index))
    return taken.view(index.shape[0], index.shape[1] * cells.shape[2], cells.shape[3])


def write_cells(cells: Tensor, selection: Selection, tokens: Tensor) -> Tensor:
    """The tokens put where :func:`gather_cells` took them from; every other cell keeps its value to the bit.

    Args:
        cells: High-resolution tokens by cell, (B, cells, t, C).
        selection: Where the tokens come from; those of entries that only fill up are not written.
        tokens: New values, (B, K·t, C).

    Returns:
        High-resolution tokens by cell, (B, cells, t, C).
    """
    tokens = tokens.reshape(-1, *cells.shape[2:]).to(cells.dtype)  # (B*K, t, C)
    flat, index = cells.flatten(0, 1), _flat_index(cells, selection.index)
    if selection.keep is not None:
        tokens = torch.where(selection.keep.flatten()[:, None, None], tokens, flat.index_select(0, index))
    return flat.index_copy(0, index, tokens).view_as(cells)


def _flat_index(cells: Tensor, index: Tensor) -> Tensor:
    first = torch.arange(cells.shape[0], device=index.device) * cells.shape[1]
    return (index + first[:, None]).flatten()
