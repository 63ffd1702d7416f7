"""Backend ``triton``: CUDA kernels in Triton for the convolution and both gradients."""

from types import ModuleType

import torch
from torch import Tensor

from ..triton_support import on_device
from .common import empty_like_image, is_channels_last, memory_format

_LANES = 32  # threads of a warp; each program is one
_ROWS = 4  # output rows of a program: each loaded value goes into as many sums
_COLUMNS_PER_LANE = {False: 4, True: 8}  # by whether the channels are innermost
_TAPS = (16, 4)  # sums of a lane for the weight gradient
_WARPS_PER_MULTIPROCESSOR = 8


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _accumulator(dtype: torch.dtype) -> object:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _tile(out: Tensor) -> tuple[int, int, int]:
    """Rows, columns and channels of the output that one program computes."""
    from triton import next_power_of_2

    channels, height, width = out.shape[1:]
    rows = min(_ROWS, next_power_of_2(height))
    channels_last = is_channels_last(out)
    block = min(_LANES, next_power_of_2(channels)) if channels_last else 1
    widest = max(1, _LANES * _COLUMNS_PER_LANE[channels_last] // block)
    if not channels_last:  # the widest of those that leave the fewest columns idle
        widest = min((widest, widest // 2, widest // 4), key=lambda n: -(-width // n) * n)
    return rows, min(widest, next_power_of_2(width)), block


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pads: tuple[int, int]) -> Tensor:
    """Convolution with zeros around the image, or with negative pads of a part of it."""
    import triton

    kernel_size = weight.shape[2:]
    size = tuple(n + 2 * pad - k + 1 for n, pad, k in zip(x.shape[2:], pads, kernel_size))
    out = empty_like_image(x, size)
    rows, columns, channels = _tile(out)
    tiles = triton.cdiv(size[0], rows) * triton.cdiv(size[1], columns)
    # a tap of neighbouring channels, or the taps of a channel, side by side
    weight = weight.flatten(1).t().contiguous().t() if channels > 1 else weight.flatten(1).contiguous()
    with on_device(x.device):
        _kernels().convolution_kernel[(tiles, triton.cdiv(x.shape[1], channels), x.shape[0])](
            x, weight, weight if bias is None else bias.contiguous(), out, *x.shape[1:], *size, *pads,
            *x.stride(), *weight.stride(), *out.stride(),
            KERNEL_Y=kernel_size[0], KERNEL_X=kernel_size[1],
            HAS_BIAS=bias is not None, ROWS=rows, BLOCK_X=columns, BLOCK_C=channels, ACC=_accumulator(x.dtype),
            num_warps=1,
        )  # fmt: skip
    return out


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """(B, C, H, W) with kernels (C, 1, k, l) → (B, C, H', W')."""
    return _convolve(x, weight, bias, (padding, padding))


def input_gradient(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
    """(B, C, H', W') with kernels (C, 1, k, l) → (B, C, H, W)."""
    height, width = weight.shape[2:]
    return _convolve(grad, weight.flip(2, 3), None, (height - 1 - padding, width - 1 - padding))


def _row_slices(batch: int, programs: int, height: int, device: torch.device) -> int:
    """Parts of a map that are summed side by side: enough to fill the GPU."""
    if device.type != 'cuda':
        return min(2, height)
    wanted = _WARPS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(height, wanted // (batch * programs)))


def weight_gradient(grad: Tensor, x: Tensor, padding: int) -> Tensor:
    """(B, C, H', W') and (B, C, H, W) → (C, 1, k, l)."""
    import triton

    batch, channels, height, width = x.shape
    taps_y, taps_x = (n + 2 * padding - m + 1 for n, m in zip(x.shape[2:], grad.shape[2:]))
    grad = grad.contiguous(memory_format=memory_format(x))
    channels_last = is_channels_last(x)
    block_y, block_x = (min(most, triton.next_power_of_2(taps)) for most, taps in zip(_TAPS, (taps_y, taps_x)))
    groups = triton.cdiv(taps_y, block_y) * triton.cdiv(taps_x, block_x)
    channel_blocks = triton.cdiv(channels, _LANES) if channels_last else channels
    slices = _row_slices(batch, groups * channel_blocks, height, x.device)
    rows = triton.cdiv(height, slices)
    slices = triton.cdiv(height, rows)
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    parts = x.new_empty((slices * batch, channels, 1, taps_y, taps_x), dtype=accumulator)
    with on_device(x.device):
        _kernels().weight_gradient_kernel[(slices * batch, groups, channel_blocks)](
            grad, x, parts, batch, channels, height, width, *grad.shape[2:], padding, rows, *grad.stride(), *x.stride(),
            KERNEL_Y=taps_y, KERNEL_X=taps_x, BLOCK_Y=block_y, BLOCK_X=block_x, LANES=_LANES,
            CHANNELS_LAST=channels_last, ACC=_accumulator(x.dtype), num_warps=1,
        )  # fmt: skip
    return parts.sum(0).to(x.dtype)
