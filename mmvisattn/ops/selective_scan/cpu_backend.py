"""Backend ``cpu``: a C++ kernel, compiled on first use for the processor at hand.

The compiled file is kept in torch's extension cache (``TORCH_EXTENSIONS_DIR``, by default below ``~/.cache``), under a
name that stands for the source, the torch version and the processor.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .common import CHUNK, empty_time_major, num_chunks, state_dtype

_SOURCE = Path(__file__).with_name('cpu_kernel.cpp')
_LOG2_E = 1.4426950408889634
_SUFFIX = {torch.float32: 'f32', torch.float64: 'f64'}
_TYPE_CODE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

logger = logging.getLogger('mmvisattn')


class _Sequence(ctypes.Structure):
    """Mirrors ``Sequence`` of the C++ source: a tensor (B, D, L)."""

    _fields_ = [
        ('data', ctypes.c_void_p),
        ('type', ctypes.c_int64),
        ('stride_b', ctypes.c_int64),
        ('stride_d', ctypes.c_int64),
        ('stride_t', ctypes.c_int64),
    ]


class _Sizes(ctypes.Structure):
    """Mirrors ``Sizes`` of the C++ source."""

    _fields_ = [(name, ctypes.c_int64) for name in ('batch', 'dim', 'length', 'state', 'chunk', 'groups')]


# ---------------------------------------------------------------------------------------------------------------- build


def _cpp_extension() -> ModuleType:
    """The loader of torch, without the warning that it prints where a CUDA toolkit but no GPU is found."""
    log = logging.getLogger('torch.utils.cpp_extension')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    finally:
        log.setLevel(level)
    return cpp_extension


def _cflags() -> list[str]:
    native = '-mcpu=native' if platform.machine() in ('arm64', 'aarch64') else '-march=native'
    openmp = [] if platform.system() == 'Darwin' else ['-fopenmp']
    # no -ffast-math: NaN and infinity must come out where they went in
    return ['-O3', native, '-ffp-contract=fast', '-fno-math-errno', *openmp]


def _processor() -> str:
    """A text that differs between processors with different instruction sets."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith(('flags', 'Features')):
                return line
    return platform.processor()


def _library_path() -> Path:
    key = '|'.join([_SOURCE.read_text(), torch.__version__, platform.machine(), _processor(), *_cflags()])
    name = f'mmvisattn_selective_scan_{hashlib.sha256(key.encode()).hexdigest()[:16]}'
    root = os.environ.get('TORCH_EXTENSIONS_DIR') or _cpp_extension().get_default_build_root()
    return Path(root) / f'{name}.so'


@contextlib.contextmanager
def _build_lock(path: Path) -> Iterator[None]:
    """Let one process of this machine build at a time, where the file system can lock."""
    with open(path, 'w') as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            # released by the kernel when its holder dies, unlike the lock files of torch's loader
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _build_lock(path.with_suffix('.lock')):
        if path.exists():  # another process was faster
            return
        logger.info('Compiling the CPU kernel of selective_scan (once for this machine), to %s', path)
        start = time.perf_counter()
        # built aside and moved into place, so that no process ever sees half a file
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'{path.stem}_') as folder:
            _cpp_extension().load(
                name=path.stem,
                sources=[str(_SOURCE)],
                extra_cflags=_cflags(),
                extra_ldflags=[] if platform.system() == 'Darwin' else ['-fopenmp'],
                build_directory=folder,
                is_python_module=False,
            )
            os.replace(Path(folder) / path.name, path)
        logger.info('Compiled the CPU kernel of selective_scan in %.1f s', time.perf_counter() - start)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled kernel, or the reason why there is none."""
    try:
        path = _library_path()
        if not path.exists():
            missing = _missing_for_build()
            if missing:
                return None, missing
            _build(path)
        return ctypes.CDLL(str(path)), None
    except Exception as error:  # whatever goes wrong with a user's compiler, backend 'torch' remains
        return None, _first_error_line(error)


def _first_error_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if 'error:' in line.lower()), lines[0] if lines else '')
    return f'it could not be compiled: {type(error).__name__}: {told}'


def _missing_for_build() -> str | None:
    """What of all that it takes to compile is not there."""
    cpp_extension = _cpp_extension()
    compiler = cpp_extension.get_cxx_compiler().split(' ')[0]  # as in CXX='ccache g++'
    if shutil.which(compiler) is None:
        return f'there is no C++ compiler {compiler!r} to build it; install one, or name it in CXX'
    if not cpp_extension.is_ninja_available():
        return 'there is no ninja to build it; pip install ninja'
    if not any((Path(folder) / 'ATen/Parallel.h').exists() for folder in cpp_extension.include_paths()):
        return 'this torch came without the headers to build it'
    return None


def unavailable_reason() -> str | None:
    """Why the kernel cannot run, None where it is built or has what it takes to build it; does not build it."""
    if _load.cache_info().currsize:  # then it is known
        return _load()[1]
    return None if _library_path().exists() else _missing_for_build()


def load_error() -> str | None:
    """Why the kernel does not run, None where it does; builds it on the first call."""
    return _load()[1]


# ----------------------------------------------------------------------------------------------------------------- call


def _sequence(x: Tensor) -> '_Sequence':
    return _Sequence(x.data_ptr(), _TYPE_CODE[x.dtype], *x.stride())


def _groups(batch: int, dim: int, state: int) -> int:
    """Parts into which the channels of a batch element are cut: enough for all threads.

    Each part has gradients of B and C of its own; all of them together may take the memory of u.
    """
    enough = -(-4 * torch.get_num_threads() // batch)
    return max(1, min(enough, dim // (2 * state), dim // 16))


def _function(name: str, dtype: torch.dtype) -> 'ctypes._FuncPointer':
    return getattr(_load()[0], f'selective_scan_{name}_{_SUFFIX[dtype]}')


def _call(name: str, dtype: torch.dtype, sizes: _Sizes, *tensors: Tensor | _Sequence) -> None:
    """Call a function of the kernel; it takes B, D, L tensors by their strides and others by their address."""
    arguments = [ctypes.byref(x) if isinstance(x, _Sequence) else ctypes.c_void_p(x.data_ptr()) for x in tensors]
    _function(name, dtype)(*arguments, ctypes.byref(sizes))


def _constants(A: Tensor, B: Tensor, C: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A, times log2(e), as (N, D), B and C as (B, L, N), in the type of the state."""
    return (
        (A.to(dtype) * _LOG2_E).t().contiguous(),
        B.transpose(1, 2).to(dtype).contiguous(),
        C.transpose(1, 2).to(dtype).contiguous(),
    )


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, save_states: bool) -> tuple[Tensor, Tensor]:
    """Result (B, D, L) in time-major memory, and the states (chunks, B, N, D) before each chunk where wanted."""
    dtype = state_dtype(u, delta, A, B, C)
    (batch, dim, length), state = u.shape, A.shape[1]
    A_t, B_t, C_t = _constants(A, B, C, dtype)
    y = empty_time_major(u)
    states = A_t.new_empty((num_chunks(length) if save_states else 0, batch, state, dim))
    sizes = _Sizes(batch, dim, length, state, CHUNK, _groups(batch, dim, state))
    _call('forward', dtype, sizes, _sequence(u), _sequence(delta), A_t, B_t, C_t, _sequence(y), states)
    return y, states


def backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs, all but that of A in time-major memory, from the states saved by ``forward``."""
    dtype = state_dtype(u, delta, A, B, C)
    (batch, dim, length), state = u.shape, A.shape[1]
    A_t, B_t, C_t = _constants(A, B, C, dtype)
    sizes = _Sizes(batch, dim, length, state, CHUNK, _groups(batch, dim, state))
    grad_u, grad_delta = empty_time_major(u), empty_time_major(delta)
    grad_A = A_t.new_empty((batch, state, dim))
    grad_B = A_t.new_empty((batch, sizes.groups, length, state))
    grad_C = torch.empty_like(grad_B)
    _call(
        'backward', dtype, sizes, _sequence(grad_y), _sequence(u), _sequence(delta), A_t, B_t, C_t, states,
        _sequence(grad_u), _sequence(grad_delta), grad_A, grad_B, grad_C,
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).t().contiguous().to(A.dtype),
        grad_B.sum(1).transpose(1, 2).to(B.dtype),
        grad_C.sum(1).transpose(1, 2).to(C.dtype),
    )
