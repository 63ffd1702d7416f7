"""Backend ``reference``: the recurrence written out, differentiated by autograd. For tests, not for speed."""

import torch
from torch import Tensor

from ..common import no_autocast
from .common import state_dtype


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Selective scan by a loop over time; see :func:`mmvisattn.ops.selective_scan.selective_scan`."""
    dtype, out_dtype = state_dtype(u, delta, A, B, C), u.dtype
    with no_autocast(u.device):
        u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
        h = u.new_zeros(u.shape[0], *A.shape)  # (B, D, N)
        y = []
        for t in range(u.shape[2]):
            decay = torch.exp(delta[:, :, t, None] * A)
            h = decay * h + (delta[:, :, t] * u[:, :, t]).unsqueeze(2) * B[:, None, :, t]
            y.append((h * C[:, None, :, t]).sum(2))
        out = torch.stack(y, dim=2) if y else u * delta
    return out.to(out_dtype)
