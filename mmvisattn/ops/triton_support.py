"""What all backends in Triton share: whether they can run, and where."""

import contextlib
import functools
import os
import shutil

import torch

# With Triton's interpreter the kernels run, slowly, on tensors on the CPU.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'


@functools.cache
def unavailable_reason() -> str | None:
    """None where kernels can run."""
    if not (INTERPRETED or torch.cuda.is_available()):
        return 'it needs a CUDA device and there is none'
    try:
        import triton  # noqa: F401
    except Exception as error:  # a Triton that does not fit its torch fails with many kinds of errors
        return f'Triton cannot be imported: {type(error).__name__}: {error}'
    has_compiler = os.environ.get('CC') or shutil.which('gcc') or shutil.which('clang') or os.name == 'nt'
    if not (INTERPRETED or has_compiler):
        return 'Triton needs a C compiler to launch kernels and finds none; install gcc, or name one in CC'
    if not INTERPRETED and torch.version.hip is None and torch.cuda.get_device_capability() < (7, 0):
        return f'it needs a GPU of compute capability 7.0, this one has {torch.cuda.get_device_capability()}'
    return None


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Context of a launch: Triton launches on the current device, whatever the tensors are on."""
    return torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext()
