"""The public function: checks, choice of the backend, and the connection to autograd and torch.compile."""

import difflib
import functools
import logging
import time
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import triton_support
from ..common import no_autocast
from . import cpu_backend, mamba_backend, reference, torch_backend, triton_backend
from .common import empty_time_major, num_chunks, state_dtype

BACKENDS = ('reference', 'torch', 'cpu', 'triton', 'mamba_ssm')

# Backends with a forward and a backward of ours; the other two are differentiated elsewhere.
_KERNELS: dict[str, ModuleType] = {'torch': torch_backend, 'cpu': cpu_backend, 'triton': triton_backend}
_UNAVAILABLE_REASON: dict[str, Callable[[], str | None]] = {
    'reference': lambda: None,
    'torch': lambda: None,
    'cpu': cpu_backend.unavailable_reason,
    'triton': triton_support.unavailable_reason,
    'mamba_ssm': mamba_backend.unavailable_reason,
}
_DEVICE = {'cpu': 'cpu', 'triton': triton_support.DEVICE, 'mamba_ssm': 'cuda'}
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Batch, channels, steps and state entries at which CUDA kernels are compared: one image of 1024 x 1024.
_TRIAL_SIZE = (1, 1536, 4097, 16)

logger = logging.getLogger('mmvisattn')


def available_backends() -> dict[str, str | None]:
    """Which backends can run here.

    The first call builds the compiled CPU kernel where that is possible, which takes some seconds.

    Returns:
        dict[str, str | None]: For each backend None where it is available, otherwise the reason why it is not.
    """
    return {name: unavailable_reason(name) for name in BACKENDS}


def unavailable_reason(backend: str) -> str | None:
    """Why a backend, one of ``BACKENDS``, cannot run here; None where it can. Builds the CPU kernel if asked for it."""
    return _UNAVAILABLE_REASON[backend]()


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str = 'auto') -> Tensor:
    """Selective scan with the state in float32 (float64 where an input is), differentiable in all five inputs.

    Inputs may have different floating point types and any strides; time-major memory is the fastest (see the package).
    NaN and infinity spread as in any operator; under ``torch.autograd.set_detect_anomaly`` they are an error.

    Args:
        u (Tensor): Input sequence (B, D, L).
        delta (Tensor): Step sizes (B, D, L), not negative.
        A (Tensor): Rates of the state (D, N), usually negative.
        B (Tensor): Input weights (B, N, L).
        C (Tensor): Output weights (B, N, L).
        backend (str): ``'reference'``, ``'torch'``, ``'cpu'``, ``'triton'``, ``'mamba_ssm'`` or ``'auto'``, which takes
            the fastest of those that are available for the device of ``u``. Defaults to ``'auto'``.

    Returns:
        Tensor: Output sequence (B, D, L), of the type of ``u``, in time-major memory.

    Raises:
        ValueError: If shapes, types or devices do not fit each other, or the backend is unknown or for another device.
        RuntimeError: If the backend is not available on this machine.
        FloatingPointError: In anomaly mode, if the result is not finite; see :func:`check_finite`.
    """
    _check_inputs(u, delta, A, B, C)
    unsupported = mamba_backend.unsupported_reason(u, delta, A, B, C, state=A.shape[1])
    backend = _choose_backend(backend, u.device.type, unsupported)
    if backend in _KERNELS:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C)):
            return _SelectiveScan.apply(u, delta, A, B, C, backend)
        return torch.ops.mmvisattn.selective_scan(u, delta, A, B, C, backend, False)[0]
    module = mamba_backend if backend == 'mamba_ssm' else reference
    y = module.selective_scan(u, delta, A, B, C)
    if torch.is_anomaly_enabled():
        check_finite(y, u, delta, A, B, C)
    return y


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
def _choose_backend(backend: str, device_type: str, mamba_unsupported: str | None) -> str:
    """The backend to use, after all checks."""
    if backend not in ('auto', *BACKENDS):
        near = difflib.get_close_matches(str(backend), ('auto', *BACKENDS), n=1, cutoff=0.5)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'selective_scan: unknown backend {backend!r}, allowed are {("auto", *BACKENDS)}{hint}')
    if backend == 'auto':
        return _fastest_backend(device_type, mamba_unsupported is None)
    device = _DEVICE.get(backend, device_type)
    if device != device_type:
        raise ValueError(
            f"selective_scan: backend {backend!r} takes tensors on '{device}', these are on '{device_type}'; "
            "move them or use backend='auto'"
        )
    reason = unavailable_reason(backend)
    if reason:
        raise RuntimeError(f"selective_scan: backend {backend!r} is not available here: {reason}; use backend='auto'")
    if backend == 'mamba_ssm' and mamba_unsupported:
        raise ValueError(f"selective_scan: backend 'mamba_ssm': {mamba_unsupported}; use backend='auto'")
    return backend


def _fastest_backend(device_type: str, fits_mamba: bool) -> str:
    if device_type == 'cpu':
        return 'torch' if unavailable_reason('cpu') else 'cpu'
    if device_type != 'cuda':
        return 'torch'
    available = [name for name in ('triton', 'mamba_ssm') if unavailable_reason(name) is None]
    if not fits_mamba and 'mamba_ssm' in available:
        available.remove('mamba_ssm')
    if len(available) == 2:
        return _faster_of(*available, device_type)
    return available[0] if available else 'torch'


@functools.cache
def _faster_of(first: str, second: str, device_type: str) -> str:
    """Time two backends once, forward and backward."""
    batch, dim, length, state = _TRIAL_SIZE
    seconds = {}
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator(device_type).manual_seed(0)

        def sequence(channels: int) -> Tensor:
            return torch.randn(batch, length, channels, generator=generator, device=device_type).transpose(1, 2)

        A = -torch.arange(1.0, state + 1, device=device_type).repeat(dim, 1)
        inputs = [sequence(dim), sequence(dim).sigmoid(), A, sequence(state), sequence(state)]
        inputs = [x.requires_grad_() for x in inputs]
        for name in (first, second):
            times = []
            for _ in range(4):  # the first one compiles
                start = time.perf_counter()
                grads = torch.autograd.grad(selective_scan(*inputs, backend=name).sum(), inputs)
                grads[2].sum().item()  # waits for the device
                times.append(time.perf_counter() - start)
            seconds[name] = min(times)
    told = ', '.join(f'{name} {1e3 * value:.2f} ms' for name, value in seconds.items())
    fastest = min(seconds, key=seconds.get)
    logger.info('selective_scan on %s: backend auto takes %s (measured: %s)', device_type, fastest, told)
    return fastest


# ------------------------------------------------------------------------------------------- autograd and torch.compile

# Custom operators, because torch.compile must see the scan as one operation: traced, its loop would be unrolled.
_library = torch.library.Library('mmvisattn', 'FRAGMENT')
_library.define(
    'selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, str backend, bool save_states) '
    '-> (Tensor, Tensor)'
)
_library.define(
    'selective_scan_backward(Tensor grad_y, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor states, '
    'str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)'
)


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str, save_states: bool
) -> tuple[Tensor, Tensor]:
    if u.numel() == 0 or A.numel() == 0:
        y, states = _forward_shapes(u, delta, A, B, C, backend, save_states)
        return y.zero_(), states
    with no_autocast(u.device):
        y, states = _KERNELS[backend].forward(u, delta, A, B, C, save_states)
    if torch.is_anomaly_enabled():
        check_finite(y, u, delta, A, B, C)
    return y, states


def _forward_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str, save_states: bool
) -> tuple[Tensor, Tensor]:
    (batch, dim, length), state = u.shape, A.shape[1]
    chunks = num_chunks(length) if save_states else 0
    states = u.new_empty((chunks, batch, state, dim), dtype=state_dtype(u, delta, A, B, C))
    return empty_time_major(u), states


def _backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if u.numel() == 0 or A.numel() == 0:
        return tuple(x.zero_() for x in _backward_shapes(grad_y, u, delta, A, B, C, states, backend))
    with no_autocast(u.device):
        return _KERNELS[backend].backward(grad_y, u, delta, A, B, C, states)


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


for _name, _function, _shapes in (
    ('selective_scan', _forward, _forward_shapes),
    ('selective_scan_backward', _backward, _backward_shapes),
):
    _library.impl(_name, _function, 'CompositeExplicitAutograd')
    _library.impl(_name, _shapes, 'Meta')


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str) -> Tensor:
        y, states = torch.ops.mmvisattn.selective_scan(u, delta, A, B, C, backend, True)
        ctx.save_for_backward(u, delta, A, B, C, states)
        ctx.backend = backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        grads = torch.ops.mmvisattn.selective_scan_backward(grad_y, *ctx.saved_tensors, ctx.backend)
        return (*grads, None)
