"""RoIAlign (arXiv 1703.06870) as ``mmcv._ext`` offers it, averaging or taking the maximum of the samples in a bin."""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from ._boxes import map_offsets, windows
from ._precision import widen

MAX, AVERAGE = 0, 1

# Outside any map, so without weight in the backward pass: the bin of a box without samples.
_NOWHERE = -2


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled bins to ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (N, 5), index in the batch and x1, y1, x2, y2 in the image.
        output (Tensor): (N, C, aligned_height, aligned_width) buffer.
        argmax_y (Tensor): The same, receives where in y the maximum was; not used when averaging.
        argmax_x (Tensor): The same in x.
        aligned_height (int): Bins in y.
        aligned_width (int): Bins in x.
        spatial_scale (float): Size of the map relative to the image.
        sampling_ratio (int): Samples of a bin in either direction, 0 for as many as it has pixels.
        pool_mode (int): 0 maximum, 1 average.
        aligned (bool): Whether pixel centres lie at half coordinates.
    """
    work = widen(input)
    boxes = rois.to(work.dtype)
    if pool_mode == AVERAGE:
        pooled = torch.ops.torchvision.roi_align(
            work, boxes, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
        output.copy_(pooled)
        return

    output.zero_()
    argmax_y.fill_(_NOWHERE)
    argmax_x.fill_(_NOWHERE)
    height, width = input.shape[2:]
    batch = boxes[:, 0].long()
    planes = work.flatten(2).transpose(1, 2).contiguous()  # (B, H*W, C)
    y_axis = _Axis(boxes[:, 2], boxes[:, 4], spatial_scale, aligned_height, sampling_ratio, aligned)
    x_axis = _Axis(boxes[:, 1], boxes[:, 3], spatial_scale, aligned_width, sampling_ratio, aligned)
    bins = aligned_height * aligned_width
    for index, size_y, size_x in windows(y_axis.samples, x_axis.samples, bins * input.size(1)):
        y, used_y = y_axis.positions(index, size_y)  # (n, aligned_height, size_y)
        x, used_x = x_axis.positions(index, size_x)
        plane = batch[index][:, None, None, None]
        parts = (weight[..., None] * planes[plane, place] for place, weight in _corners(y, x, height, width))
        values = functools.reduce(torch.add, parts)  # (n, aligned_height, aligned_width, size_y * size_x, C)
        unused = ~_outer(used_y, used_x, torch.logical_and)
        value, at = values.masked_fill_(unused[..., None], -torch.inf).max(3)
        output[index] = value.permute(0, 3, 1, 2).to(output.dtype)
        # Position of the maximum from its number among the samples of the bin, which lie row by row.
        row = torch.div(at, size_x, rounding_mode='floor')
        for buffer, axis, sample in (
            (argmax_y, y[:, :, None], row),
            (argmax_x, x[:, None], at - row * size_x),
        ):
            place = axis.expand(*at.shape[:3], -1).gather(3, sample)
            buffer[index] = place.permute(0, 3, 1, 2).to(buffer.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient to ``grad_input`` (B, C, H, W), zeros before; arguments as in the forward function."""
    grad = widen(grad_output)
    boxes = rois.to(grad.dtype)
    if pool_mode == AVERAGE:
        if grad.device.type == 'cpu':
            _spread_average(grad, boxes, grad_input, spatial_scale, sampling_ratio, aligned)
            return
        geometry = (spatial_scale, aligned_height, aligned_width)
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad, boxes, *geometry, *grad_input.shape, sampling_ratio, aligned
            )
        )
        return

    height, width = grad_input.shape[2:]
    start = map_offsets(rois, grad_input)
    total = grad.new_zeros(grad_input.numel())
    for row, weight_y in _neighbours(argmax_y.to(grad.dtype), height):
        for column, weight_x in _neighbours(argmax_x.to(grad.dtype), width):
            place = start + row * width + column
            total.index_add_(0, place.flatten(), (grad * weight_y * weight_x).flatten())
    grad_input.copy_(total.view_as(grad_input))


def _spread_average(
    grad: Tensor, boxes: Tensor, grad_input: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> None:
    """Gradient of the average: each pixel sums up what the bins that it is in owe it, for all channels at once.

    On a CPU torchvision adds sample by sample and channel by channel, with the weights worked out for each anew.

    Args:
        grad (Tensor): (N, C, bins_y, bins_x).
        boxes (Tensor): (N, 5).
        grad_input (Tensor): (B, C, H, W) buffer.
        spatial_scale (float): See :func:`roi_align_forward`.
        sampling_ratio (int): See there.
        aligned (bool): See there.
    """
    bins_y, bins_x = grad.shape[2:]
    images, _, height, width = grad_input.shape
    batch = boxes[:, 0].long()
    y_axis = _Axis(boxes[:, 2], boxes[:, 4], spatial_scale, bins_y, sampling_ratio, aligned)
    x_axis = _Axis(boxes[:, 1], boxes[:, 3], spatial_scale, bins_x, sampling_ratio, aligned)
    number = torch.arange(len(boxes) * bins_y * bins_x).view(-1, bins_y, bins_x, 1)
    shares = [(number.new_zeros(0), number.new_zeros(0), grad.new_zeros(0))]  # pixel, bin, weight
    for index, size_y, size_x in windows(y_axis.samples, x_axis.samples, 4 * bins_y * bins_x):
        row, weight_y = y_axis.shares(index, size_y, height)
        column, weight_x = x_axis.shares(index, size_x, width)
        pixel = _outer(row * width, column, torch.add) + batch[index, None, None, None] * (height * width)
        weight = _outer(weight_y, weight_x, torch.mul)
        used = weight.flatten().nonzero().squeeze(1)
        source = number[index].expand_as(pixel)
        shares.append((pixel.flatten()[used], source.flatten()[used], weight.flatten()[used]))
    pixel, source, weight = (torch.cat(parts) for parts in zip(*shares))
    pixel, order = pixel.sort()
    first = torch.searchsorted(pixel, torch.arange(images * height * width))
    table = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
    total = F.embedding_bag(source[order], table, first, mode='sum', per_sample_weights=weight[order])
    grad_input.copy_(total.view(images, height, width, -1).permute(0, 3, 1, 2))


class _Axis:
    """Where the bins of every box are sampled along one axis.

    Args:
        low (Tensor): (N,) near edge of each box in the image.
        high (Tensor): (N,) far edge.
        scale (float): Size of the map relative to the image.
        bins (int): Number of bins.
        sampling_ratio (int): Samples of a bin, 0 for as many as it has pixels.
        aligned (bool): Whether pixel centres lie at half coordinates.
    """

    def __init__(self, low: Tensor, high: Tensor, scale: float, bins: int, sampling_ratio: int, aligned: bool) -> None:
        shift = 0.5 if aligned else 0
        self.start = low * scale - shift
        length = high * scale - shift - self.start
        if not aligned:
            length = length.clamp(min=1)
        self.bins = bins
        self.step = length / bins
        self.samples = self.step.ceil().long()  # (N,)
        if sampling_ratio > 0:
            self.samples = torch.full_like(self.samples, sampling_ratio)

    def positions(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Samples of some boxes, padded to ``size`` a bin: (n, bins, size), and which of them count."""
        start, step, samples = (tensor[index][:, None, None] for tensor in (self.start, self.step, self.samples))
        bins = torch.arange(self.bins, device=start.device)[:, None]
        sample = torch.arange(size, device=start.device)
        position = start + bins * step + (sample + 0.5) * step / samples
        return position, (sample < samples).expand(position.shape)

    def shares(self, index: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
        """What pixels each bin of some boxes averages, with what weights: (n, bins, pixels) both.

        Args:
            index (Tensor): The boxes.
            size (int): Most samples of a bin.
            length (int): Pixels of the map along the axis.
        """
        position, used = self.positions(index, size)
        position = torch.where(used, position, position[..., :1])
        (low, weight_low), (high, weight_high) = _neighbours(position, length)
        used = used / self.samples[index, None, None]
        pixel = torch.cat([low, high], 2)
        weight = torch.cat([weight_low * used, weight_high * used], 2)
        # The samples of a bin share pixels: one weight for each in the range of the bin.
        first = pixel.amin(2, keepdim=True)
        pixel = pixel - first
        total = weight.new_zeros(*pixel.shape[:2], int(pixel.max()) + 1).scatter_add_(2, pixel, weight)
        return (first + torch.arange(total.shape[2])).clamp(max=length - 1), total


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around every sample of every bin, y * width + x, and their bilinear weights.

    Both are (n, bins_y, bins_x, size_y * size_x).
    """
    for row, weight_y in _neighbours(y, height):
        for column, weight_x in _neighbours(x, width):
            yield _outer(row * width, column, torch.add), _outer(weight_y, weight_x, torch.mul)


def _neighbours(position: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two pixels around each position along an axis and their weights, 0 for a position off the map."""
    inside = (position >= -1) & (position <= size)
    position = position.clamp(min=0, max=size - 1)
    low = position.floor()
    fraction = position - low
    low = low.long()
    high = (low + 1).clamp(max=size - 1)
    return (low, (1 - fraction) * inside), (high, fraction * inside)


def _outer(y: Tensor, x: Tensor, operation: Callable) -> Tensor:
    """(n, bins_y, size_y) and (n, bins_x, size_x) to (n, bins_y, bins_x, size_y * size_x)."""
    return operation(y[:, :, None, :, None], x[:, None, :, None, :]).flatten(3)
