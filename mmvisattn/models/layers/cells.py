"""A map of tokens cut into cells of the same size: take the tokens of some cells, and put them back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .selection import Selection


@dataclass(frozen=True)
class Tiling:
    """How a map of tokens is cut into cells of the same size.

    Cells at the right and bottom may reach beyond the map.

    Args:
        size (tuple[int, int]): Rows and columns of tokens.
        cell (tuple[int, int]): Rows and columns of tokens in a cell, t in all.
    """

    size: tuple[int, int]
    cell: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = ((size + cell - 1) // cell for size, cell in zip(self.size, self.cell))
        return rows, columns

    def locate(self, selection: Selection) -> tuple[Tensor, Tensor | None]:
        """The tokens of the chosen cells.

        Args:
            selection (Selection): K cells of each image.

        Returns:
            tuple[Tensor, Tensor | None]: Numbers of the tokens in the map, cell by cell, (B, K·t), and False for those
            of entries that only fill up and for those beyond the map, whose number is that of another, (B, K·t); None
            where all count.
        """
        device = selection.indices.device
        (height, width), columns = self.cell, self.shape[1]
        inner = torch.arange(height * width, device=device)
        row = selection.indices // columns
        column = selection.indices - row * columns  # a remainder by an open size is none of ONNX
        rows = (row * height).unsqueeze(-1) + inner // width  # (B, K, t)
        cols = (column * width).unsqueeze(-1) + inner % width
        keep = None if selection.keep is None else selection.keep.unsqueeze(-1).expand_as(rows)
        if any(size % cell for size, cell in zip(self.size, self.cell)):
            inside = (rows < self.size[0]) & (cols < self.size[1])
            keep = inside if keep is None else keep & inside
            rows, cols = rows.clamp(max=self.size[0] - 1), cols.clamp(max=self.size[1] - 1)
        return (rows * self.size[1] + cols).flatten(1), None if keep is None else keep.flatten(1)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens of some numbers: (B, L, C) and (B, M) → (B, M, C)."""
    return tokens.flatten(0, 1).index_select(0, _flat_index(tokens, index)).unflatten(0, index.shape)


def add_tokens(tokens: Tensor, index: Tensor, new: Tensor, keep: Tensor | None = None) -> Tensor:
    """Add to the tokens of some numbers; every other token keeps its value to the bit.

    Args:
        tokens (Tensor): (B, L, C).
        index (Tensor): Numbers of tokens, (B, M).
        new (Tensor): What to add, (B, M, C).
        keep (Tensor, optional): False for what is not added, (B, M).

    Returns:
        Tensor: (B, L, C).
    """
    if keep is not None:
        new = torch.where(keep.unsqueeze(-1), new, 0)
    flat = tokens.flatten(0, 1).index_add(0, _flat_index(tokens, index), new.flatten(0, 1).to(tokens.dtype))
    return flat.view_as(tokens)


def _flat_index(tokens: Tensor, index: Tensor) -> Tensor:
    first = torch.arange(tokens.shape[0], device=index.device) * tokens.shape[1]
    return (index + first[:, None]).flatten()
