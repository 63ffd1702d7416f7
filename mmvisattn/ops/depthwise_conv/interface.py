"""The public function: checks, choice of the backend, and the connection to autograd and torch.compile."""

from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from ...errors import nearest
from .. import triton_support
from ..common import is_exported, no_autocast
from . import torch_backend, triton_backend
from .common import empty_like_image, is_channels_last, memory_format

BACKENDS = ('native', 'torch', 'triton')
# Smallest kernel that gets a backend of ours: from it on 'torch' beats 'native' on a CPU, as the project's benchmark of
# operators has it.
MIN_KERNEL_SIZE = 5

_KERNELS: dict[str, ModuleType] = {'torch': torch_backend, 'triton': triton_backend}
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def available_backends() -> dict[str, str | None]:
    """Which backends can run here.

    Returns:
        dict[str, str | None]: For each backend None where it is available, otherwise the reason why it is not.
    """
    return {**dict.fromkeys(BACKENDS), 'triton': triton_support.unavailable_reason()}


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0, *, backend: str = 'auto'
) -> Tensor:
    """Depthwise convolution of stride 1, equal to ``F.conv2d(..., groups=C)``, differentiable to any order.

    Whatever the backend, a graph that is exported shows a plain convolution.

    Args:
        x (Tensor): Input (B, C, H, W), of any memory format.
        weight (Tensor): One kernel for each channel (C, 1, k, l), of odd or even sides.
        bias (Tensor, optional): (C,). Defaults to None.
        padding (int): Zeros added on each side, in pixels. Defaults to 0.
        backend (str): ``'native'``, ``'torch'``, ``'triton'`` or ``'auto'``. For kernels from 5×5 on ``'auto'`` takes
            ``'torch'`` on a CPU if they are being trained, and on CUDA ``'triton'``, if it is there, for maps in
            channels-last memory; in all other cases ``'native'``. A fixed rule: which is the fastest depends on the
            GPU. Defaults to ``'auto'``.

    Returns:
        Tensor: (B, C, H + 2·padding − k + 1, W + 2·padding − l + 1), in the memory format of ``x``.

    Raises:
        ValueError: If shapes, types or devices do not fit each other, or the backend is unknown or for another device.
        RuntimeError: If the backend is not available on this machine.
    """
    if is_exported():
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    dtype = None if x.dtype == torch.float64 else _autocast_dtype(x.device.type)
    _check_inputs(x, weight, bias, padding, autocast=dtype is not None)
    if backend == 'auto':
        backend = _default_backend(x, weight)
    else:
        _check_backend(backend, x.device.type)
    if backend == 'native':
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return torch.ops.mmvisattn.depthwise_conv2d(x, weight, bias, padding, backend)


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one kernel for each channel, run by :func:`depthwise_conv2d`.

    Args:
        channels (int): Number of channels C.
        kernel_size (int): Side of the odd square kernel in pixels; the map keeps its size.
    """

    bias: nn.Parameter  # there always is one

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return depthwise_conv2d(x, self.weight, self.bias, self.kernel_size[0] // 2)


# --------------------------------------------------------------------------------------------------------------- checks


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The type to which autocast takes a convolution, None where it is off."""
    if device_type not in ('cpu', 'cuda'):
        return None
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _check_inputs(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, autocast: bool) -> None:
    if x.ndim != 4:
        raise ValueError(f'depthwise_conv2d: x must be (B, C, H, W), got shape {tuple(x.shape)}')
    channels = x.shape[1]
    if weight.ndim != 4 or weight.shape[:2] != (channels, 1):
        raise ValueError(
            f'depthwise_conv2d: weight must be (C, 1, k, l) with C = {channels} to go with x {tuple(x.shape)}, got '
            f'shape {tuple(weight.shape)}'
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f'depthwise_conv2d: bias must be (C,) = ({channels},), got shape {tuple(bias.shape)}')
    if padding < 0:
        raise ValueError(f'depthwise_conv2d: padding must not be negative, got {padding}')
    if any(k < 1 or n < 1 or n + 2 * padding < k for n, k in zip(x.shape[2:], weight.shape[2:])):
        raise ValueError(
            f'depthwise_conv2d: a kernel {tuple(weight.shape[2:])} does not fit into an image {tuple(x.shape[2:])} '
            f'with padding {padding}'
        )
    if x.dtype not in _TYPES:
        raise ValueError(f'depthwise_conv2d: x must be of one of the types {_TYPES}, got {x.dtype}')
    for name, other in dict(weight=weight, bias=bias).items():
        if other is not None and other.device != x.device:
            raise ValueError(
                f'depthwise_conv2d: all inputs must be on one device, got x on {x.device}, {name} on {other.device}'
            )
        if other is not None and other.dtype != x.dtype and not autocast:
            raise ValueError(f'depthwise_conv2d: all inputs must be of one type, got x {x.dtype}, {name} {other.dtype}')


def _check_backend(backend: str, device_type: str) -> None:
    if backend not in BACKENDS:
        allowed = ('auto', *BACKENDS)
        raise ValueError(
            f'depthwise_conv2d: unknown backend {backend!r}{nearest(str(backend), allowed)}, allowed are {allowed}'
        )
    if backend == 'triton' and device_type not in (triton_support.DEVICE, 'meta'):
        raise ValueError(
            f"depthwise_conv2d: backend 'triton' takes tensors on {triton_support.DEVICE!r}, these are on "
            f"{device_type!r}; move them or use backend='auto'"
        )
    reason = triton_support.unavailable_reason() if backend == 'triton' else None
    if reason:
        raise RuntimeError(f"depthwise_conv2d: backend {backend!r} is not available here: {reason}; use backend='auto'")


# ------------------------------------------------------------------------------------------------------------- choosing


def _default_backend(x: Tensor, weight: Tensor) -> str:
    """What ``'auto'`` takes: not in the operator, as the scan does, because ``'native'`` is none of ours."""
    if min(weight.shape[2:]) >= MIN_KERNEL_SIZE:
        if x.device.type == 'cpu' and torch.is_grad_enabled() and weight.requires_grad:
            return 'torch'
        if x.device.type == 'cuda' and is_channels_last(x) and _triton_takes_cuda():
            return 'triton'
    return 'native'


@torch.compiler.assume_constant_result
def _triton_takes_cuda() -> bool:
    return triton_support.DEVICE == 'cuda' and triton_support.unavailable_reason() is None


# ------------------------------------------------------------------------------------------------------------ operators


@torch.library.custom_op('mmvisattn::depthwise_conv2d', mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, backend: str) -> Tensor:
    if x.numel() == 0:
        return _forward_shape(x, weight, bias, padding, backend).zero_()
    with no_autocast(x.device):
        out = _KERNELS[backend].forward(x, weight, bias, padding)
    return out.contiguous(memory_format=memory_format(x))


@_forward.register_fake
def _forward_shape(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, backend: str) -> Tensor:
    return empty_like_image(x, [n + 2 * padding - k + 1 for n, k in zip(x.shape[2:], weight.shape[2:])])


@torch.library.custom_op('mmvisattn::depthwise_conv2d_input', mutates_args=())
def _input(grad: Tensor, weight: Tensor, padding: int, backend: str) -> Tensor:
    if grad.numel() == 0:
        return _input_shape(grad, weight, padding, backend).zero_()
    with no_autocast(grad.device):
        out = _KERNELS[backend].input_gradient(grad, weight, padding)
    return out.contiguous(memory_format=memory_format(grad))


@_input.register_fake
def _input_shape(grad: Tensor, weight: Tensor, padding: int, backend: str) -> Tensor:
    return empty_like_image(grad, [n - 2 * padding + k - 1 for n, k in zip(grad.shape[2:], weight.shape[2:])])


@torch.library.custom_op('mmvisattn::depthwise_conv2d_weight', mutates_args=())
def _weight(grad: Tensor, x: Tensor, padding: int, backend: str) -> Tensor:
    if grad.numel() == 0:
        return _weight_shape(grad, x, padding, backend).zero_()
    with no_autocast(x.device):
        # DDP would have to copy a gradient of other strides.
        return _KERNELS[backend].weight_gradient(grad, x, padding).contiguous()


@_weight.register_fake
def _weight_shape(grad: Tensor, x: Tensor, padding: int, backend: str) -> Tensor:
    return x.new_empty((x.shape[1], 1, *(n + 2 * padding - m + 1 for n, m in zip(x.shape[2:], grad.shape[2:]))))


@register_flop_formula(torch.ops.mmvisattn.depthwise_conv2d)
def _flops(x: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """Two for each element of the result and each tap; weight is (C, 1, k, l)."""
    return 2 * prod(out_shape) * prod(weight[1:])


# ------------------------------------------------------------------------------------------------------------- autograd

# Two tensors come first among the inputs of each operator, two settings last; the gradients are the other operators.


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[-2:]


def _forward_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    return (
        torch.ops.mmvisattn.depthwise_conv2d_input(grad, weight, *ctx.settings) if needs_x else None,
        torch.ops.mmvisattn.depthwise_conv2d_weight(grad, x, *ctx.settings) if needs_weight else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
        None,
        None,
    )


def _input_gradients(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    needs_grad, needs_weight, *_ = ctx.needs_input_grad
    return (
        torch.ops.mmvisattn.depthwise_conv2d(grad_x, weight, None, *ctx.settings) if needs_grad else None,
        torch.ops.mmvisattn.depthwise_conv2d_weight(grad, grad_x, *ctx.settings) if needs_weight else None,
        None,
        None,
    )


def _weight_gradients(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    needs_grad, needs_x, *_ = ctx.needs_input_grad
    return (
        torch.ops.mmvisattn.depthwise_conv2d(x, grad_weight, None, *ctx.settings) if needs_grad else None,
        torch.ops.mmvisattn.depthwise_conv2d_input(grad, grad_weight, *ctx.settings) if needs_x else None,
        None,
        None,
    )


_forward.register_autograd(_forward_gradients, setup_context=_save)
_input.register_autograd(_input_gradients, setup_context=_save)
_weight.register_autograd(_weight_gradients, setup_context=_save)
