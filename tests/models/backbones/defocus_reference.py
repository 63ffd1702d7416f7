"""The De-focus operators written out formula by formula, over all pairs of tokens."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def naive_attention(q, k, v, rate, causal):
    """``softmax_s(e^{λ|t−s|} · <q_t, k_s>) · v_s``, without the later tokens where causal."""
    position = torch.arange(q.shape[2])
    distance = position[:, None] - position
    logits = q @ k.mT
    if rate is not None:
        logits = logits * torch.exp(rate[:, None, None] * distance.abs())
    if causal:
        logits = logits + torch.zeros(distance.shape, dtype=q.dtype).masked_fill(distance < 0, -torch.inf)
    return F.softmax(logits, -1) @ v


def attention_inputs(length, decay=True):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.double, requires_grad=True) for _ in range(3))
    rate = (-torch.rand(3, dtype=torch.double)).requires_grad_() if decay else None
    return q, k, v, rate


def quadratic_retention(q, k, v, rate):
    """``Σ_{s≤t} <q_t, k_s> e^{λ(t−s)} v_s``."""
    position = torch.arange(q.shape[2])
    distance = position[:, None] - position
    filter = torch.exp(rate[:, None, None] * distance.clamp(min=0)).tril()
    return (q @ k.mT * filter) @ v


def turned(x, freq, scale):
    """Pairs of channels as complex numbers, times e^{iθt}."""
    angle = torch.arange(x.shape[2], dtype=torch.double)[:, None] / scale * freq
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operator makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out
