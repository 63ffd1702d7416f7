"""A look at a fine map for what a coarse one does not know."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.common import at_least_float32

HIDDEN = 48


class MapScout(nn.Module):
    """A small MLP that judges each place of a fine map; a coarse token is worth its best one.

    The coarse levels of a feature pyramid come of the last stages of a backbone, and small things do not get that far;
    the fine levels know of them. Like the selectors of `QueryDet <https://arxiv.org/abs/2103.09136>`_ (Yang et al.,
    2022) it is to be taught where objects are. Places are judged one by one, so padding has no part in what the others
    are worth.

    Args:
        dim (int): Number of channels C of the map.
        zoom (int): Places to a side of a coarse token.
    """

    def __init__(self, dim: int, zoom: int) -> None:
        super().__init__()
        self.zoom = zoom
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.hidden = nn.Linear(dim, HIDDEN)
        self.judge = nn.Linear(HIDDEN, 1)
        nn.init.constant_(self.judge.bias, -4.0)  # few places are worth a closer look

    def forward(
        self, high: Tensor, high_grid: tuple[int, int], low_grid: tuple[int, int], inside: Tensor | None = None
    ) -> Tensor:
        """Judge the coarse tokens.

        Args:
            high (Tensor): Tokens of the fine map in raster order, (B, H·W, C).
            high_grid (tuple[int, int]): H and W.
            low_grid (tuple[int, int]): Rows and columns of coarse tokens; where they do not span the fine map, the last
                one stands for what is left.
            inside (Tensor, optional): False for fine tokens that come of padding, boolean, (B, H·W).

        Returns:
            Tensor: A logit for each coarse token, (B, rows, columns), in float32 at least; −inf for padding.
        """
        logits = at_least_float32(self.judge(F.gelu(self.hidden(self.norm(high))))).squeeze(-1)  # (B, H·W)
        if inside is not None:
            logits = logits.masked_fill(~inside, float('-inf'))
        worth = F.max_pool2d(logits.unflatten(1, high_grid)[:, None], self.zoom, ceil_mode=True).squeeze(1)
        for dim, count in ((1, low_grid[0]), (2, low_grid[1])):
            if worth.shape[dim] > count:
                rest = worth.narrow(dim, count - 1, worth.shape[dim] - count + 1).amax(dim, keepdim=True)
                worth = torch.cat([worth.narrow(dim, 0, count - 1), rest], dim)
        return worth
