"""What the operators on regions share: boxes of unequal size in batches, and the maps they lie on."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of the largest intermediate tensor: 64 MiB in float32.
_BUDGET = 2**24


def windows(rows: Tensor, columns: Tensor, weight: int) -> Iterator[tuple[Tensor, int, int]]:
    """Group boxes by the size of their sampling window, so that each group is one tensor operation.

    Sizes are rounded up to a power of two, hence a few groups serve any set of boxes; boxes with an empty window are
    left out, and groups are cut to a bounded amount of memory.

    Args:
        rows (Tensor): (N,) height of each box's window.
        columns (Tensor): (N,) width of each box's window.
        weight (int): Elements of a box for each position in its window.

    Yields:
        Indices of the boxes, and a height and width that hold all their windows.
    """
    sizes = torch.stack([rows, columns], 1).cpu()
    rounded = 2 ** sizes.clamp(min=1).float().log2().ceil().long()
    rounded[(sizes < 1).any(1)] = 0
    for height, width in rounded.unique(dim=0).tolist():
        if not height:
            continue
        group = (rounded == rounded.new_tensor([height, width])).all(1).nonzero()[:, 0]
        for part in group.to(rows.device).split(max(1, _BUDGET // (height * width * weight))):
            yield part, height, width


def map_offsets(rois: Tensor, maps: Tensor) -> Tensor:
    """Where the maps of each box begin in a flat view of all of them.

    Args:
        rois (Tensor): (N, 5), the first column names the image.
        maps (Tensor): (B, C, H, W).

    Returns:
        Tensor: (N, C, 1, 1).
    """
    channels = maps.size(1)
    number = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    return (number * maps.size(2) * maps.size(3))[:, :, None, None]
