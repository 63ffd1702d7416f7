"""Backend ``mamba_ssm``: the CUDA kernel of the mamba-ssm package, where the user has installed it."""

import functools

import torch
from torch import Tensor

from ..common import no_autocast

MAX_STATE = 256


@functools.cache
def unavailable_reason() -> str | None:
    """None where mamba-ssm can run."""
    if not torch.cuda.is_available():
        return 'it needs a CUDA device and there is none'
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except Exception as error:  # a package built for another torch fails with many kinds of errors
        return f'the package mamba-ssm cannot be imported: {type(error).__name__}: {error}'
    return None


def unsupported_reason(*tensors: Tensor, state: int) -> str | None:
    """None where the kernel takes these tensors."""
    if any(x.dtype == torch.float64 for x in tensors):
        return 'its kernel does not compute in float64'
    if state > MAX_STATE:
        return f'its kernel takes at most {MAX_STATE} state entries, not {state}'
    return None


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Selective scan by mamba-ssm; see :func:`mmvisattn.ops.selective_scan.selective_scan`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    unsupported = unsupported_reason(u, delta, A, B, C, state=A.shape[1])
    if unsupported:
        raise ValueError(f"selective_scan: backend 'mamba_ssm': {unsupported}; use backend='auto'")
    # the kernel wants one type for everything but A
    dtype = u.dtype if u.dtype == delta.dtype == B.dtype == C.dtype else torch.float32
    with no_autocast(u.device):
        y = selective_scan_fn(u.to(dtype), delta.to(dtype), A.float(), B.to(dtype), C.to(dtype))
    return y.to(u.dtype)
