"""What all backends share: the layout of results."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of (B, C, H, W) lie closer together in memory than the columns."""
    return x.stride(1) < x.stride(3)


def memory_format(x: Tensor) -> torch.memory_format:
    """The dense layout next to that of (B, C, H, W)."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def empty_like_image(x: Tensor, size: Sequence[int]) -> Tensor:
    """Uninitialised (B, C, H', W') of the type and memory format of ``x``."""
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x))
