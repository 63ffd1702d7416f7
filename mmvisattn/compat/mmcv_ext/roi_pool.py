"""RoI max pooling (arXiv 1504.08083) as ``mmcv._ext`` offers it.

torchvision's kernel rounds the corners of a box to pixels and mmcv's does not, so this one is built from gathers.
"""

import torch
from torch import Tensor

from ._boxes import map_offsets, windows


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of every bin to ``output`` and where it was to ``argmax``.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (N, 5), index in the batch and x1, y1, x2, y2 in the image.
        output (Tensor): (N, C, pooled_height, pooled_width) buffer; empty bins become 0.
        argmax (Tensor): The same in int32: y * W + x of the maximum, -1 for an empty bin.
        pooled_height (int): Bins in y.
        pooled_width (int): Bins in x.
        spatial_scale (float): Size of the map relative to the image.
    """
    output.zero_()
    argmax.fill_(-1)
    height, width = input.shape[2:]
    batch = rois[:, 0].long()
    first_y, count_y = _bins(rois[:, 2], rois[:, 4] + 1, spatial_scale, pooled_height, height)
    first_x, count_x = _bins(rois[:, 1], rois[:, 3] + 1, spatial_scale, pooled_width, width)
    planes = input.flatten(2).transpose(1, 2).contiguous()  # (B, H*W, C)
    for index, size_y, size_x in windows(
        count_y.amax(1), count_x.amax(1), pooled_height * pooled_width * input.size(1)
    ):
        y, used_y = _positions(first_y[index], count_y[index], size_y)  # (n, pooled_height, size_y)
        x, used_x = _positions(first_x[index], count_x[index], size_x)
        place = (y * width)[:, :, None, :, None] + x[:, None, :, None, :]
        used = (used_y[:, :, None, :, None] & used_x[:, None, :, None, :]).flatten(3)  # (n, ph, pw, size)
        place = place.flatten(3)
        values = planes[batch[index][:, None, None, None], place]  # (n, ph, pw, size, C)
        value, at = values.masked_fill(~used[..., None], -torch.inf).max(3)
        place = place[..., None].expand(values.shape).gather(3, at.unsqueeze(3)).squeeze(3)
        filled = used.any(3, keepdim=True)
        output[index] = value.masked_fill(~filled, 0).permute(0, 3, 1, 2)
        argmax[index] = place.masked_fill(~filled, -1).permute(0, 3, 1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add each bin's gradient to ``grad_input`` at its maximum; arguments as in the forward function."""
    grad = grad_output.masked_fill(argmax < 0, 0).to(grad_input.dtype)
    place = map_offsets(rois, grad_input) + argmax.clamp(min=0)
    grad_input.view(-1).index_add_(0, place.flatten(), grad.flatten())


def _bins(low: Tensor, high: Tensor, scale: float, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First position and number of positions of each bin along one axis, both (N, bins)."""
    low, high = low * scale, high * scale
    step = (high - low) / bins
    edge = torch.arange(bins + 1, device=low.device)
    start = (edge[:-1] * step[:, None] + low[:, None]).floor().clamp(0, size)
    stop = (edge[1:] * step[:, None] + low[:, None]).ceil().clamp(0, size)
    count = (stop - start).clamp(min=0) * (high > low)[:, None]
    return start.long(), count.long()


def _positions(first: Tensor, count: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Positions of each bin padded to ``size`` of them, (n, bins, size), and which are inside the bin."""
    step = torch.arange(size, device=first.device)
    inside = step < count[..., None]
    return (first[..., None] + step).where(inside, first.new_zeros(())), inside
