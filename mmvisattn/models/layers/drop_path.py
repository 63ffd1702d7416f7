"""Drop path whose rate may change while training, in a compiled network too."""

from collections.abc import Callable

import torch
from timm.layers import DropPath as TimmDropPath
from torch import Tensor


class DropPath(TimmDropPath):
    """timm's, with the rate in a tensor.

    A number of Python is a constant of a compiled graph: :class:`~mmvisattn.engine.ScheduledDropPathHook`, which sets
    ``drop_prob`` epoch by epoch or before every iteration, would have the network compiled anew each time.

    Args:
        drop_prob (float): Rate at which a sample is dropped, 0 to below 1. Defaults to 0.
    """

    keep_prob: Tensor

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__(drop_prob)

    @property
    def drop_prob(self) -> float:
        """The rate."""
        return self._drop_prob

    @drop_prob.setter
    def drop_prob(self, rate: float) -> None:
        self._drop_prob = rate
        self.drops = rate > 0  # all that a graph depends on
        if 'keep_prob' in self._buffers:
            self.keep_prob.fill_(1 - rate)
        else:
            self.register_buffer('keep_prob', torch.tensor(1 - rate, dtype=torch.float32), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'DropPath':
        """Moved, or emptied by ``to_empty``, the tensor holds the rate; no checkpoint would tell it."""
        super()._apply(fn, recurse)
        self.drop_prob = self._drop_prob
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) → (B, ...): in training each sample is dropped, or divided by the share of those that stay."""
        if not (self.training and self.drops):
            return x
        keep = torch.bernoulli(self.keep_prob.expand(x.shape[0], *[1] * (x.ndim - 1)))
        return x * (keep / self.keep_prob).to(x.dtype)
