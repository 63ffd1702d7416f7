"""A map of tokens cut into cells of the same size: take the tokens of some cells, and put them back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpointing import run
from .selection import Selection


@dataclass(frozen=True)
class Tiling:
    """How a map of tokens is cut into cells of the same size.

    Cells at the right and bottom may reach beyond the map; there they hold zeros, told apart by :meth:`valid_tokens`.

    Args:
        size (tuple[int, int]): Rows and columns of tokens.
        cell (tuple[int, int]): Rows and columns of tokens in a cell, t in all.
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

    def valid_tokens(self, device: torch.device) -> Tensor | None:
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
        cells (Tensor): High-resolution tokens by cell, (B, cells, t, C).
        selection (Selection): Where the tokens come from; those of entries that only fill up are not written.
        tokens (Tensor): New values, (B, K·t, C).

    Returns:
        Tensor: High-resolution tokens by cell, (B, cells, t, C).
    """
    tokens = tokens.reshape(-1, *cells.shape[2:]).to(cells.dtype)  # (B*K, t, C)
    flat, index = cells.flatten(0, 1), _flat_index(cells, selection.indices)
    if selection.keep is not None:
        tokens = torch.where(selection.keep.flatten()[:, None, None], tokens, flat.index_select(0, index))
    return flat.index_copy(0, index, tokens).view_as(cells)


def _flat_index(cells: Tensor, index: Tensor) -> Tensor:
    first = torch.arange(cells.shape[0], device=index.device) * cells.shape[1]
    return (index + first[:, None]).flatten()


def attend_and_write_back(
    block: nn.Module,
    low: Tensor,
    cells: Tensor,
    selection: Selection,
    valid: Tensor | None = None,
    angles: tuple[Tensor, Tensor] | None = None,
    with_cp: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer on the low-resolution tokens and the selected cells of the high-resolution map.

    Args:
        block (nn.Module): The layer, a :class:`~.hierarchical_attention.HierarchicalBlock`.
        low (Tensor): Low-resolution tokens, (B, N, C).
        cells (Tensor): The high-resolution map by cell, (B, cells, t, C).
        selection (Selection): The cells to take.
        valid (Tensor, optional): False for tokens of a cell that lie beyond the map, (cells, t); None if there are
            none.
        angles (tuple[Tensor, Tensor], optional): Rotary angles of the low-resolution tokens, (1, N, d / 2), and of the
            cells, (cells, t, d / 2), or None.
        with_cp (bool): Recompute the layer in the backward instead of keeping its activations.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: Low-resolution tokens (B, N, C), the map by cell (B, cells, t, C), and
        queries and keys of the low-resolution tokens, each (B, heads, N, d).
    """
    high = gather_cells(cells, selection.indices)
    keep = None
    if selection.keep is not None:
        keep = selection.keep.repeat_interleave(cells.shape[2], 1)  # (B, K*t)
    if valid is not None:
        inside = valid[selection.indices].flatten(1)
        keep = inside if keep is None else keep & inside
    both = None
    if angles is not None:
        of_low, of_cells = angles
        both = torch.cat([of_low.expand(low.shape[0], -1, -1), of_cells[selection.indices].flatten(1, 2)], 1)
    low, high, q, k = run(block, low, high, keep, both, with_cp=with_cp)
    return low, write_cells(cells, selection, high), q, k
