"""Which cells of the high-resolution map are worth looking at closely.

After `FlexAttention for Efficient High-Resolution Vision-Language Models <https://arxiv.org/abs/2407.20228>`_ (Li et
al., 2024), where the words of a question attend to the low-resolution image, and high-resolution tokens are taken where
they do. An image alone asks nothing, so the questions here are learned: by labels where
:class:`~mmvisattn.engine.CellLossHook` brings them, and by a gate of every cell that was taken, by which the loss
reaches the choice.

The paper brings its attention to 0…255, takes what exceeds a threshold, and pools by the maximum, so that regions stay
whole; both are kept. A fixed share of the cells makes shapes static.
"""

from fractions import Fraction
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError, nearest
from ...ops.common import at_least_float32, is_exported, is_open
from ..checks import check_numbers

SELECT_MODES = ('topk', 'threshold')
NUM_QUESTIONS = 4


class Relevance(nn.Module):
    """How relevant each low-resolution token is to learned questions, to which it answers by a scalar product.

    Args:
        dim (int): Number of channels C.
        scout (nn.Module, optional): Judges the places of the low-resolution tokens by what it is shown besides, such
            as :class:`~mmvisattn.models.layers.scout.Scout`; its logits are added. Defaults to None.
    """

    def __init__(self, dim: int, scout: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.questions = nn.Linear(dim, NUM_QUESTIONS)
        nn.init.trunc_normal_(self.questions.weight, std=0.02)
        nn.init.zeros_(self.questions.bias)
        self.scout = scout

    def forward(self, low: Tensor, grid: tuple[int, int], valid: Tensor | None = None, *seen: Any) -> Tensor:
        """Judge the tokens.

        Args:
            low (Tensor): Low-resolution tokens in raster order, (B, N, C).
            grid (tuple[int, int]): Their rows and columns.
            valid (Tensor, optional): False for tokens that come of padding, boolean, (B, N); None if there are none.
            *seen (Tensor | None): What the scout is shown.

        Returns:
            Tensor: Logits, (B, rows, columns), in float32 at least; −inf for padding.
        """
        logits = at_least_float32(self.questions(self.norm(low))).logsumexp(-1)  # (B, N)
        if self.scout is not None:
            logits = logits + self.scout(*seen).flatten(1)
        if valid is not None:
            logits = logits.masked_fill(~valid, float('-inf'))
        return logits.unflatten(1, grid)


class Selection(NamedTuple):
    """The chosen cells of each image of a batch.

    Args:
        indices (Tensor): Numbers of the cells in raster order, distinct within an image, (B, K).
        keep (Tensor | None): False where an image has chosen fewer than K cells and the entry only fills up, (B, K);
            None where all count.
    """

    indices: Tensor
    keep: Tensor | None

    def gate(self, logits: Tensor, tokens: int) -> Tensor:
        """What the update of each chosen token is multiplied with: 1, by whose gradient the loss reaches the choice.

        The gradient is that of the sigmoid of the relevance: it says how much more or less of a cell was wanted.

        Args:
            logits (Tensor): Relevance of each cell, (B, cell rows, cell columns).
            tokens (int): Number of tokens t in a cell.

        Returns:
            Tensor: Ones, (B, K·t, 1).
        """
        score = logits.flatten(1).gather(1, self.indices).sigmoid().repeat_interleave(tokens, 1).unsqueeze(-1)
        return 1 + (score - score.detach())

    def mask(self, shape: tuple[int, int]) -> Tensor:
        """The chosen cells as a map: boolean, (B, rows, columns)."""
        chosen = self.indices.new_zeros(self.indices.shape[0], shape[0] * shape[1], dtype=torch.bool)
        keep = torch.ones_like(self.indices, dtype=torch.bool) if self.keep is None else self.keep
        return chosen.scatter(1, self.indices, keep).unflatten(1, shape)


def min_max(relevance: Tensor, valid: Tensor | None = None) -> Tensor:
    """Each map brought to 0…1, (B, rows, columns); a constant map becomes zero, and so does padding.

    Args:
        relevance (Tensor): Maps, (B, rows, columns).
        valid (Tensor, optional): False where there is only padding, which counts for nothing, boolean, (B, rows,
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
    """Choose the most relevant cells. A module, so that a forward hook sees what is chosen, or gives it something else.

    In training a part of the cells is drawn at random: of a cell that is never taken, the loss says nothing.

    Args:
        mode (str): ``'topk'`` takes the same share of cells of every image, so shapes are static. ``'threshold'`` takes
            the cells above a threshold, as the paper does: as many as an image asks for, filled up and masked in a
            batch.
        ratio (float): Share of the cells that ``'topk'`` takes, 0 to 1.
        threshold (float): What the attention of the questions, brought to 0…255, must exceed in mode ``'threshold'``.
        explore (float): Share of the cells that ``'topk'`` takes in training which is drawn at random, 0 to 1.

    Raises:
        UserError: If the mode is unknown, or another argument is out of range.
    """

    def __init__(self, mode: str = 'topk', ratio: float = 0.25, threshold: float = 48.0, explore: float = 0.15) -> None:
        super().__init__()
        if mode not in SELECT_MODES:
            raise UserError(f'`select_mode` is {mode!r}{nearest(mode, SELECT_MODES)}; set it to one of {SELECT_MODES}')
        check_numbers('FlexAttention', select_ratio=ratio, select_threshold=threshold, select_explore=explore)
        self.mode = mode
        self.ratio = ratio
        self.threshold = threshold
        self.explore = explore

    @torch.no_grad()
    def forward(self, logits: Tensor, valid: Tensor | None = None) -> Selection:
        """Choose cells.

        Args:
            logits (Tensor): Relevance of each cell, (B, cell rows, cell columns).
            valid (Tensor, optional): False where a cell holds nothing but padding, boolean, (B, cell rows, cell
                columns); such cells are never chosen, and the share is one of the others. None where there are none.

        Returns:
            Selection: The selection, detached.
        """
        if self.mode == 'threshold':
            attention = logits.flatten(1).softmax(1).unflatten(1, logits.shape[1:])
            return self.choose(min_max(attention, valid), valid)
        return self.choose(logits, valid)

    def choose(self, scores: Tensor, valid: Tensor | None = None) -> Selection:
        """Choose the cells of the highest scores, in mode ``'threshold'`` from 0 to 1; see :meth:`forward`."""
        scores = scores.flatten(1)  # (B, cells)
        if valid is not None:
            scores = scores.masked_fill(~valid.flatten(1), float('-inf'))
        if self.mode == 'threshold':
            return self._above_threshold(scores)
        # A size is a tensor while torch.jit.trace runs; the graph keeps the number.
        num_cells: Any = scores.shape[1]
        count = self.count(int(num_cells) if isinstance(num_cells, Tensor) else num_cells)
        if self.training and self.explore > 0:
            scores = self._explore(scores, count)
        if valid is None:
            return Selection(scores.topk(count, sorted=False).indices, None)
        counts = self.count(valid.flatten(1).sum(1, keepdim=True).double())  # (B, 1)
        return Selection(scores.topk(count).indices, torch.arange(count, device=scores.device) < counts)

    @overload
    def count(self, num_cells: int) -> int: ...
    @overload
    def count(self, num_cells: Tensor) -> Tensor: ...
    def count(self, num_cells: int | Tensor) -> int | Tensor:
        """How many of a number of cells ``'topk'`` takes; at least one unless the ratio is 0."""
        least = int(self.ratio > 0)
        if isinstance(num_cells, Tensor):
            return (self.ratio * num_cells).round().clamp(min=least)
        if is_open(num_cells):
            return self._count_open(num_cells, least)
        return max(round(self.ratio * num_cells), least)

    def _count_open(self, num_cells: int, least: int) -> Any:
        """The same in whole numbers, which graphs of any size can have: rounded, and halves to the even number."""
        share = Fraction(self.ratio).limit_denominator(10**6)
        double = 2 * share.denominator
        doubled = 2 * share.numerator * num_cells + share.denominator
        nearest, rest = doubled // double, doubled % double
        count = nearest - (nearest % 2) * (1 - torch.sym_min(rest, 1))
        return torch.sym_max(count, least)

    def _explore(self, scores: Tensor, count: int) -> Tensor:
        """Scores by which the best cells come first, others in random order, and padding last.

        Whether an entry is drawn at random is itself drawn, so that the share holds for a few cells too.
        """
        rank = scores.argsort(1, descending=True).argsort(1)
        drawn = (torch.rand(scores.shape[0], count, device=scores.device) < self.explore).sum(1, keepdim=True)
        best = rank < count - drawn
        random = torch.where(best, 2 - rank / rank.shape[1], torch.rand_like(scores))
        return random.masked_fill(scores == float('-inf'), float('-inf'))

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
        return f'mode={self.mode}, {amount}, explore={self.explore}'
