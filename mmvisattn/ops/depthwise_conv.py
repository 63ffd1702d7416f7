"""Depthwise convolution with a large kernel, whose weight gradient is fast on a CPU too.

torch computes the weight gradient of a depthwise convolution on the CPU 5 to 40 times slower than the forward. The same
gradient is itself a depthwise convolution: with the batch folded into the channels, the input is the image and the
output gradient the kernel,

    grad_weight[c, i, j] = sum over b, y, x of input[b, c, y + i, x + j] · grad_output[b, c, y, x]

which runs at the speed of a forward convolution. Kernels below 7×7 are left to torch, which is faster there, and so is
everything on a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Smallest kernel for which the gradient as a convolution beats torch's own, see tools/analysis/benchmark_fcvit.py.
MIN_KERNEL_SIZE = 7


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if need_x:
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=ctx.padding, groups=x.shape[1])
        if need_weight:
            batch, channels = x.shape[:2]
            image = x.reshape(1, batch * channels, *x.shape[2:])
            kernel = grad.reshape(batch * channels, 1, *grad.shape[2:])
            grad_weight = F.conv2d(image, kernel, padding=ctx.padding, groups=batch * channels)
            # (C, 1, k, k); DDP would have to copy a gradient of other strides.
            grad_weight = grad_weight.view(batch, *weight.shape).sum(0).contiguous()
        if need_bias:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


def _autocast(device_type: str) -> bool:
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch < 2.4 takes no device
        return torch.is_autocast_cpu_enabled()


def is_traced() -> bool:
    """Whether the code is being compiled or exported, so that the graph should show plain operators."""
    compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # torch >= 2.3
    return torch.jit.is_tracing() or compiling()


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """Depthwise convolution of stride 1, equal to ``F.conv2d(..., groups=C)``.

    Args:
        x: Input, (B, C, H, W), of any memory format.
        weight: One kernel for each channel, (C, 1, k, k).
        bias: (C,) or None.
        padding: Zeros added on each side, in pixels.

    Returns:
        (B, C, H + 2·padding − k + 1, W + 2·padding − k + 1).
    """
    own_backward = (
        x.device.type == 'cpu'
        and min(weight.shape[2:]) >= MIN_KERNEL_SIZE
        and x.numel() > 0
        and torch.is_grad_enabled()
        and weight.requires_grad
        and not _autocast('cpu')
    )
    if own_backward:
        return _DepthwiseConv2d.apply(x, weight, bias, padding)
    return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one kernel for each channel, run by :func:`depthwise_conv2d`.

    Args:
        channels: Number of channels C.
        kernel_size: Side of the odd square kernel in pixels; the map keeps its size.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return depthwise_conv2d(x, self.weight, self.bias, self.padding[0])
