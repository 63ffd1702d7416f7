"""The public function: checks, choice of the backend, and the connection to autograd and torch.compile."""

import functools
import logging
from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ...errors import nearest
from .. import triton_support
from ..common import is_traced, no_autocast
from . import cpu_backend, mamba_backend, reference, torch_backend, triton_backend
from .common import empty_time_major, num_chunks, state_dtype

BACKENDS = ('reference', 'torch', 'cpu', 'triton', 'mamba_ssm')

# Backends with a forward and a backward of ours, which are in the operator; the other two are not.
_KERNELS: dict[str, ModuleType] = {'torch': torch_backend, 'cpu': cpu_backend, 'triton': triton_backend}
_DIFFERENTIATED_ELSEWHERE: dict[str, ModuleType] = {'reference': reference, 'mamba_ssm': mamba_backend}
_UNAVAILABLE_REASON: dict[str, Callable[[], str | None]] = {
    'reference': lambda: None,
    'torch': lambda: None,
    'cpu': cpu_backend.unavailable_reason,
    'triton': triton_support.unavailable_reason,
    'mamba_ssm': mamba_backend.unavailable_reason,
}
_DEVICE = {'cpu': 'cpu', 'triton': triton_support.DEVICE, 'mamba_ssm': 'cuda'}
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

logger = logging.getLogger('mmvisattn')


def available_backends() -> dict[str, str | None]:
    """Which backends can run here; that the CPU kernel compiles is seen when it is first used.

    Returns:
        dict[str, str | None]: For each backend None where it is available, otherwise the reason why it is not.
    """
    return {name: unavailable_reason(name) for name in BACKENDS}


def unavailable_reason(backend: str) -> str | None:
    """Why a backend, one of ``BACKENDS``, cannot run here; None where it can."""
    return _UNAVAILABLE_REASON[backend]()


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str = 'auto') -> Tensor:
    """Selective scan with the state in float32 (float64 where an input is), differentiable once in all five inputs.

    Inputs may have different floating point types and any strides; time-major memory is the fastest (see the package).
    NaN and infinity spread as in any operator; under ``torch.autograd.set_detect_anomaly`` they are an error.

    Args:
        u (Tensor): Input sequence (B, D, L).
        delta (Tensor): Step sizes (B, D, L), not negative.
        A (Tensor): Rates of the state (D, N), usually negative.
        B (Tensor): Input weights (B, N, L).
        C (Tensor): Output weights (B, N, L).
        backend (str): ``'reference'``, ``'torch'``, ``'cpu'``, ``'triton'``, ``'mamba_ssm'`` or ``'auto'``: on a CPU
            ``'cpu'``, on CUDA ``'triton'``, and ``'torch'`` elsewhere and where they cannot run. An exported graph
            keeps ``'auto'``, and chooses where it runs. Defaults to ``'auto'``.

    Returns:
        Tensor: Output sequence (B, D, L), of the type of ``u``, in time-major memory.

    Raises:
        ValueError: If shapes, types or devices do not fit each other, or the backend is unknown or for another device.
        RuntimeError: If the backend is not available on this machine.
        FloatingPointError: In anomaly mode, if the result is not finite; see :func:`check_finite`.
    """
    _check_inputs(u, delta, A, B, C)
    _check_backend(backend, u.device.type)
    if backend not in _DIFFERENTIATED_ELSEWHERE:
        save_states = torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C))
        return torch.ops.mmvisattn.selective_scan(u, delta, A, B, C, backend, save_states)[0]
    y = _DIFFERENTIATED_ELSEWHERE[backend].selective_scan(u, delta, A, B, C)
    if torch.is_anomaly_enabled():
        check_finite(y, u, delta, A, B, C)
    return y


def scan_tokens(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str = 'auto') -> Tensor:
    """:func:`selective_scan` of sequences of tokens, (B, L, D), whose state must not be lost.

    Args:
        u (Tensor): Input sequence (B, L, D).
        delta (Tensor): Step sizes (B, L, D).
        A (Tensor): Rates of the state (D, N).
        B (Tensor): Input weights (B, L, N).
        C (Tensor): Output weights (B, L, N).
        backend (str): See :func:`selective_scan`. Defaults to ``'auto'``.

    Returns:
        Tensor: Output sequence (B, L, D), of the type of ``u``.

    Raises:
        FloatingPointError: On a CPU, if the state is lost to NaN or infinity; see :func:`check_finite`.
    """
    inputs = (u.mT, delta.mT, A, B.mT, C.mT)
    y = selective_scan(*inputs, backend=backend)
    # A state that is lost stays so to the end. A GPU would have to wait: there, anomaly mode tells the place.
    if y.device.type == 'cpu' and not is_traced() and not y[..., -1:].isfinite().all():
        check_finite(y, *inputs)
    return y.mT


def check_finite(y: Tensor, *inputs: Tensor) -> None:
    """Name the first place in time where the result of a scan is not finite, and what went in there.

    Args:
        y (Tensor): The result (B, D, L).
        *inputs (Tensor): The five inputs.

    Raises:
        FloatingPointError: If a value is NaN or infinite.
    """
    for name, x in zip(('u', 'delta', 'A', 'B', 'C'), inputs):
        if not x.isfinite().all():
            place = (~x.isfinite()).nonzero()[0].tolist()
            raise FloatingPointError(f'selective_scan: {name} is not finite at index {place}')
    bad = (~y.isfinite()).nonzero()
    if len(bad):
        b, d, t = bad[bad[:, 2].argmin()].tolist()
        u, delta, A = inputs[:3]
        raise FloatingPointError(
            f'selective_scan: the state is not finite from step {t} on in batch element {b}, channel {d}: the result '
            f'is {y[b, d, t].item()}, u {u[b, d, t].item():.3g}, delta {delta[b, d, t].item():.3g}, largest A '
            f'{A[d].max().item():.3g}; all inputs are finite, so the state has overflowed'
        )


# --------------------------------------------------------------------------------------------------------------- checks


def _check_inputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if u.ndim != 3:
        raise ValueError(f'selective_scan: u must be (B, D, L), got shape {tuple(u.shape)}')
    if A.ndim != 2:
        raise ValueError(f'selective_scan: A must be (D, N), got shape {tuple(A.shape)}')
    (batch, dim, length), state = u.shape, A.shape[1]
    expected = {
        'delta': (delta, '(B, D, L)', (batch, dim, length)),
        'A': (A, '(D, N)', (dim, state)),
        'B': (B, '(B, N, L)', (batch, state, length)),
        'C': (C, '(B, N, L)', (batch, state, length)),
    }
    for name, (x, letters, shape) in expected.items():
        if x.shape != shape:
            raise ValueError(
                f'selective_scan: {name} must be {letters} = {tuple(shape)} to go with u {tuple(u.shape)} and N = '
                f'{state}, got shape {tuple(x.shape)}'
            )
    for name, x in dict(u=u, delta=delta, A=A, B=B, C=C).items():
        if x.dtype not in _TYPES:
            raise ValueError(f'selective_scan: {name} must be of one of the types {_TYPES}, got {x.dtype}')
        if x.device != u.device:
            raise ValueError(
                f'selective_scan: all inputs must be on one device, got u on {u.device}, {name} on {x.device}'
            )


# ------------------------------------------------------------------------------------------------------------- choosing


@torch.compiler.assume_constant_result
def _check_backend(backend: str, device_type: str) -> None:
    if backend not in ('auto', *BACKENDS):
        allowed = ('auto', *BACKENDS)
        raise ValueError(
            f'selective_scan: unknown backend {backend!r}{nearest(str(backend), allowed)}, allowed are {allowed}'
        )
    if backend == 'auto':
        return
    device = _DEVICE.get(backend, device_type)
    shapes_alone = device_type == 'meta' and backend in _KERNELS
    if device != device_type and not shapes_alone:
        raise ValueError(
            f"selective_scan: backend {backend!r} takes tensors on '{device}', these are on '{device_type}'; "
            "move them or use backend='auto'"
        )
    _raise_if(unavailable_reason(backend), backend)


def _raise_if(reason: str | None, backend: str) -> None:
    if reason:
        raise RuntimeError(f"selective_scan: backend {backend!r} is not available here: {reason}; use backend='auto'")


def _kernels(backend: str, device_type: str) -> ModuleType:
    """The module of a backend that is to compute, here and now."""
    _check_backend(backend, device_type)  # again: a graph may have been recorded on another machine
    if backend == 'auto':
        backend = _default_backend(device_type)
    elif backend == 'cpu':
        _raise_if(cpu_backend.load_error(), backend)
    return _KERNELS[backend]


def _default_backend(device_type: str) -> str:
    """What ``'auto'`` takes on a device."""
    if device_type == 'cpu':
        reason = cpu_backend.load_error()
        if reason:
            _warn_of_slow_scan(reason)
        return 'torch' if reason else 'cpu'
    return 'triton' if device_type == 'cuda' and unavailable_reason('triton') is None else 'torch'


@functools.cache
def _warn_of_slow_scan(reason: str) -> None:
    logger.warning('selective_scan: without the compiled CPU kernel plain PyTorch takes its place: %s', reason)


# ---------------------------------------------------------------------------------------------------------- operators

# Operators, because torch.compile must see the scan as one operation: traced, its loop would be unrolled.


@torch.library.custom_op('mmvisattn::selective_scan', mutates_args=())
def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str, save_states: bool
) -> tuple[Tensor, Tensor]:
    """The result, and the states before each chunk for the backward; no states without ``save_states``."""
    if u.numel() == 0 or A.numel() == 0:
        y, states = _forward_shapes(u, delta, A, B, C, backend, save_states)
        return y.zero_(), states
    with no_autocast(u.device):
        y, states = _kernels(backend, u.device.type).forward(u, delta, A, B, C, save_states)
    if torch.is_anomaly_enabled():
        check_finite(y, u, delta, A, B, C)
    return y, states


@_forward.register_fake
def _forward_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str, save_states: bool
) -> tuple[Tensor, Tensor]:
    (batch, dim, length), state = u.shape, A.shape[1]
    chunks = num_chunks(length) if save_states else 0
    states = u.new_empty((chunks, batch, state, dim), dtype=state_dtype(u, delta, A, B, C))
    return empty_time_major(u), states


@torch.library.custom_op('mmvisattn::selective_scan_backward', mutates_args=())
def _backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the five inputs."""
    if u.numel() == 0 or A.numel() == 0:
        return tuple(x.zero_() for x in _backward_shapes(grad_y, u, delta, A, B, C, states, backend))
    with no_autocast(u.device):
        return _kernels(backend, u.device.type).backward(grad_y, u, delta, A, B, C, states)


@_backward.register_fake
def _backward_shapes(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        empty_time_major(u),
        empty_time_major(delta),
        A.new_empty(A.shape),
        empty_time_major(B),
        empty_time_major(C),
    )


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend, ctx.save_states = inputs
    states = output[1]
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)  # that of the states would be zeros of their size
    ctx.save_for_backward(*tensors, states)


def _gradients(ctx: Any, grad_y: Tensor | None, grad_states: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:  # nothing depends on the result
        return (None,) * len(ctx.needs_input_grad)
    if not ctx.save_states:
        raise RuntimeError(
            'selective_scan: the graph was recorded without gradients, so there are no states to compute them from; '
            'record it again with inputs that require them'
        )
    return (*torch.ops.mmvisattn.selective_scan_backward(grad_y, *ctx.saved_tensors, ctx.backend), None, None)


def _no_second_gradients(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("selective_scan is once differentiable; use backend='reference' for second derivatives")


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(_no_second_gradients)


@register_flop_formula(torch.ops.mmvisattn.selective_scan)
def _flops(u: Sequence[int], delta: Sequence[int], A: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Seven for each step, channel and state entry, one for each step and channel; u is (B, D, L), A (D, N).

    They are δ·A, its exponential, decay·h, the product with B and its sum, the product with C and its sum; and δ·u.
    """
    return prod(u) * (7 * A[1] + 1)
