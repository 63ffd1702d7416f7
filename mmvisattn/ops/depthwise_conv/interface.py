"""The public function: checks, choice of the backend, and the connection to autograd and torch.compile."""

import difflib
import functools
import logging
import time
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import triton_support
from ..common import is_exported, no_autocast
from . import torch_backend, triton_backend
from .common import empty_like_image, memory_format

BACKENDS = ('native', 'torch', 'triton')
# Smallest kernel for which backend 'torch' beats 'native' on a CPU, as the project's benchmark of operators has it.
MIN_KERNEL_SIZE = 5

_KERNELS: dict[str, ModuleType] = {'torch': torch_backend, 'triton': triton_backend}
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Sizes (B, C, H, W) at which CUDA kernels are compared: the stages of FCViT-b12 for an image of 512 × 512, and the
# first one for two of 800 × 1344.
_TRIAL_SIZES = ((1, 512, 16, 16), (1, 320, 32, 32), (1, 128, 64, 64), (1, 64, 128, 128), (2, 64, 200, 336))

logger = logging.getLogger('mmvisattn')


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
            ``'torch'`` on a CPU if they are being trained, and on CUDA ``'triton'`` if it is there and a trial finds it
            the faster one, once a process for each kernel size, type, memory format and order of magnitude of the map;
            in all other cases ``'native'``. Defaults to ``'auto'``.

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
        backend = _fastest_backend(x, weight, dtype or x.dtype)
    else:
        _check_backend(backend, x.device.type)
    if backend == 'native':
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _operators.depthwise_conv2d(x, weight, bias, padding, backend)


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one kernel for each channel, run by :func:`depthwise_conv2d`.

    Args:
        channels (int): Number of channels C.
        kernel_size (int): Side of the odd square kernel in pixels; the map keeps its size.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return depthwise_conv2d(x, self.weight, self.bias, self.padding[0])


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
        near = difflib.get_close_matches(str(backend), ('auto', *BACKENDS), n=1, cutoff=0.5)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'depthwise_conv2d: unknown backend {backend!r}, allowed are {("auto", *BACKENDS)}{hint}')
    if backend == 'triton' and device_type not in (triton_support.DEVICE, 'meta'):
        raise ValueError(
            f"depthwise_conv2d: backend 'triton' takes tensors on {triton_support.DEVICE!r}, these are on "
            f"{device_type!r}; move them or use backend='auto'"
        )
    reason = triton_support.unavailable_reason() if backend == 'triton' else None
    if reason:
        raise RuntimeError(f"depthwise_conv2d: backend {backend!r} is not available here: {reason}; use backend='auto'")


# ------------------------------------------------------------------------------------------------------------- choosing


def _fastest_backend(x: Tensor, weight: Tensor, dtype: torch.dtype) -> str:
    if min(weight.shape[2:]) < MIN_KERNEL_SIZE:
        return 'native'
    if x.device.type == 'cpu':
        return 'torch' if torch.is_grad_enabled() and weight.requires_grad else 'native'
    if x.device.type != 'cuda':
        return 'native'
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return _faster_on_cuda(_trial_size(x), tuple(weight.shape[2:]), dtype, memory_format(x), training)


def _trial_size(x: Tensor) -> tuple[int, int, int, int]:
    """That of ``_TRIAL_SIZES`` with about as many positions as the input has."""
    positions = x.shape[0] * x.shape[2] * x.shape[3]
    for size in _TRIAL_SIZES[:-1]:
        batch, _, height, width = size
        if positions <= 2 * batch * height * width:
            return size
    return _TRIAL_SIZES[-1]


@torch.compiler.assume_constant_result
def _faster_on_cuda(
    size: tuple[int, int, int, int],
    kernel_size: tuple[int, int],
    dtype: torch.dtype,
    layout: torch.memory_format,
    training: bool,
) -> str:
    if triton_support.DEVICE != 'cuda' or triton_support.unavailable_reason():
        return 'native'
    return _faster_of('native', 'triton', 'cuda', size, kernel_size, dtype, layout, training)


@functools.cache
def _faster_of(
    first: str,
    second: str,
    device_type: str,
    size: tuple[int, int, int, int],
    kernel_size: tuple[int, int],
    dtype: torch.dtype,
    layout: torch.memory_format,
    training: bool,
) -> str:
    """Time two backends once, in training forward and backward; the first where one fails."""
    seconds = {}
    with torch.inference_mode(False), torch.set_grad_enabled(training), no_autocast(torch.device(device_type)):
        generator = torch.Generator(device_type).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device_type).to(dtype)

        x = normal(*size).contiguous(memory_format=layout).requires_grad_(training)
        weight = normal(size[1], 1, *kernel_size).requires_grad_(training)
        padding = max(kernel_size) // 2
        for name in (first, second):
            times = []
            try:
                for _ in range(4):  # the first one compiles
                    start = time.perf_counter()
                    out = depthwise_conv2d(x, weight, padding=padding, backend=name)
                    result = torch.autograd.grad(out, (x, weight), out.detach())[1] if training else out
                    result.sum().item()  # waits for the device
                    times.append(time.perf_counter() - start)
            except Exception as error:  # Triton needs a C compiler at run time, a driver that fits, …
                logger.warning('depthwise_conv2d: backend %s fails on this machine: %s', name, error)
                return first
            seconds[name] = min(times)
    told = ', '.join(f'{name} {1e3 * value:.2f} ms' for name, value in seconds.items())
    fastest = min(seconds, key=seconds.get)
    logger.info(
        'depthwise_conv2d on %s, size %s, kernel %s, %s, %s, %s: backend auto takes %s (measured: %s)',
        device_type, size, kernel_size, dtype, layout, 'training' if training else 'inference', fastest, told,
    )  # fmt: skip
    return fastest


# ------------------------------------------------------------------------------------------- autograd and torch.compile

_library = torch.library.Library('mmvisattn', 'FRAGMENT')
_operators = torch.ops.mmvisattn
_library.define('depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, int padding, str backend) -> Tensor')
_library.define('depthwise_conv2d_input(Tensor grad, Tensor weight, int padding, str backend) -> Tensor')
_library.define('depthwise_conv2d_weight(Tensor grad, Tensor x, int padding, str backend) -> Tensor')


def _forward_shape(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, backend: str) -> Tensor:
    return empty_like_image(x, [n + 2 * padding - k + 1 for n, k in zip(x.shape[2:], weight.shape[2:])])


def _input_shape(grad: Tensor, weight: Tensor, padding: int, backend: str) -> Tensor:
    return empty_like_image(grad, [n - 2 * padding + k - 1 for n, k in zip(grad.shape[2:], weight.shape[2:])])


def _weight_shape(grad: Tensor, x: Tensor, padding: int, backend: str) -> Tensor:
    return x.new_empty((x.shape[1], 1, *(n + 2 * padding - m + 1 for n, m in zip(x.shape[2:], grad.shape[2:]))))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, backend: str) -> Tensor:
    if x.numel() == 0:
        return _forward_shape(x, weight, bias, padding, backend).zero_()
    with no_autocast(x.device):
        out = _KERNELS[backend].forward(x, weight, bias, padding)
    return out.contiguous(memory_format=memory_format(x))


def _input(grad: Tensor, weight: Tensor, padding: int, backend: str) -> Tensor:
    if grad.numel() == 0:
        return _input_shape(grad, weight, padding, backend).zero_()
    with no_autocast(grad.device):
        out = _KERNELS[backend].input_gradient(grad, weight, padding)
    return out.contiguous(memory_format=memory_format(grad))


def _weight(grad: Tensor, x: Tensor, padding: int, backend: str) -> Tensor:
    if grad.numel() == 0:
        return _weight_shape(grad, x, padding, backend).zero_()
    with no_autocast(x.device):
        # DDP would have to copy a gradient of other strides.
        return _KERNELS[backend].weight_gradient(grad, x, padding).contiguous()


def _differentiate(operator: str, gradients: Callable[..., tuple[Tensor | None, ...]]) -> None:
    """Register the gradients of an operator: two tensors come first among its inputs, two settings last."""

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs) -> Tensor:
            ctx.save_for_backward(*inputs[:2])
            ctx.settings = inputs[-2:]
            with torch._C._AutoDispatchBelowAutograd():
                return getattr(_operators, operator)(*inputs)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
            needed = gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors, *ctx.settings)
            return (*needed, None, None)

    _library.impl(operator, Rule.apply, 'Autograd')


def _forward_gradients(
    needed: tuple[bool, ...], grad: Tensor, x: Tensor, weight: Tensor, *settings
) -> tuple[Tensor | None, ...]:
    return (
        _operators.depthwise_conv2d_input(grad, weight, *settings) if needed[0] else None,
        _operators.depthwise_conv2d_weight(grad, x, *settings) if needed[1] else None,
        grad.sum((0, 2, 3)) if needed[2] else None,
    )


def _input_gradients(
    needed: tuple[bool, ...], grad_x: Tensor, grad: Tensor, weight: Tensor, *settings
) -> tuple[Tensor | None, ...]:
    return (
        _operators.depthwise_conv2d(grad_x, weight, None, *settings) if needed[0] else None,
        _operators.depthwise_conv2d_weight(grad, grad_x, *settings) if needed[1] else None,
    )


def _weight_gradients(
    needed: tuple[bool, ...], grad_weight: Tensor, grad: Tensor, x: Tensor, *settings
) -> tuple[Tensor | None, ...]:
    return (
        _operators.depthwise_conv2d(x, grad_weight, None, *settings) if needed[0] else None,
        _operators.depthwise_conv2d_input(grad, grad_weight, *settings) if needed[1] else None,
    )


for _name, _function, _shape, _gradients in (
    ('depthwise_conv2d', _forward, _forward_shape, _forward_gradients),
    ('depthwise_conv2d_input', _input, _input_shape, _input_gradients),
    ('depthwise_conv2d_weight', _weight, _weight_shape, _weight_gradients),
):
    _library.impl(_name, _function, 'CompositeExplicitAutograd')
    _library.impl(_name, _shape, 'Meta')
    _differentiate(_name, _gradients)
