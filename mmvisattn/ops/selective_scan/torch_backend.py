"""Backend ``torch``: the scan in plain PyTorch, on any device, without a compiler.

Work goes in chunks of ``CHUNK`` steps, in which everything but the recurrence is done for all steps at once; the
recurrence is one fused multiply-add on the whole (B, N, D) state per step. Channels are innermost, since the few
entries of a state would make short vectors.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from .common import CHUNK, empty_time_major, num_chunks, state_dtype

# Decays below exp(min_log_decay) and states below min_state are rounded to these limits and to zero: they are far
# below what the state can resolve, and CPUs need a hundred times longer for denormal numbers.
_LIMITS = {torch.float32: (-80.0, 1e-30), torch.float64: (-650.0, 1e-280)}


class _Chunk(NamedTuple):
    """Inputs of one chunk, time first: (K, B, D) or (K, B, N)."""

    delta: Tensor
    u: Tensor
    B: Tensor
    C: Tensor


class _Scan:
    """Inputs in the type of the state, and the buffers which all chunks share."""

    def __init__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
        self.dtype = state_dtype(u, delta, A, B, C)
        self.min_log_decay, self.min_state = _LIMITS[self.dtype]
        self.u, self.delta, self.B, self.C = u, delta, B, C
        self.A = A.to(self.dtype).t().contiguous()  # (N, D)
        self.batch, self.dim, self.length = u.shape
        self.state_shape = (self.batch, *self.A.shape)  # (B, N, D)
        self.decay, self.decay_steps = self.buffer()
        self.h, self.h_steps = self.buffer()

    def buffer(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A (K, B, N, D) buffer and its steps."""
        buffer = self.A.new_empty((min(CHUNK, self.length), *self.state_shape))
        return buffer, buffer.unbind(0)

    def starts(self) -> range:
        return range(0, self.length, CHUNK)

    def take(self, x: Tensor, start: int) -> Tensor:
        """Steps ``start`` to ``start + CHUNK`` of (B, D or N, L), as (K, B, D or N) in the type of the state."""
        return x[:, :, start : start + CHUNK].permute(2, 0, 1).to(self.dtype).contiguous()

    def run(self, start: int, h: Tensor) -> _Chunk:
        """Fill ``self.decay`` and ``self.h`` for one chunk, from the state ``h`` before its first step."""
        chunk = _Chunk(*(self.take(x, start) for x in (self.delta, self.u, self.B, self.C)))
        steps = len(chunk.delta)
        decay, states = self.decay[:steps], self.h[:steps]
        torch.mul(chunk.delta.unsqueeze(2), self.A, out=decay).clamp_(min=self.min_log_decay).exp_()
        torch.mul((chunk.delta * chunk.u).unsqueeze(2), chunk.B.unsqueeze(3), out=states)
        for decay_t, h_t in zip(self.decay_steps[:steps], self.h_steps):
            h = h_t.addcmul_(decay_t, h)
        return chunk

    def last_state(self, steps: int) -> Tensor:
        """A copy of the state after the chunk in ``self.h``, free of denormal numbers."""
        return hardshrink(self.h_steps[steps - 1], self.min_state)


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, save_states: bool) -> tuple[Tensor, Tensor]:
    """Result (B, D, L) in time-major memory, and the states (chunks, B, N, D) before each chunk where wanted."""
    scan = _Scan(u, delta, A, B, C)
    y = empty_time_major(u)
    states = scan.A.new_empty((num_chunks(scan.length) if save_states else 0, *scan.state_shape))
    h = scan.A.new_zeros(scan.state_shape)
    for i, start in enumerate(scan.starts()):
        if save_states:
            states[i] = h
        chunk = scan.run(start, h)
        steps = len(chunk.C)
        y_chunk = torch.matmul(chunk.C.unsqueeze(2), scan.h[:steps]).squeeze(2)  # (K, B, D)
        y[:, :, start : start + steps] = y_chunk.permute(1, 2, 0)
        h = scan.last_state(steps)
    return y, states


def backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs, all but that of A in time-major memory, from the states saved by ``forward``."""
    scan = _Scan(u, delta, A, B, C)
    grad_h, grad_h_steps = scan.buffer()
    grad_u, grad_delta = empty_time_major(u), empty_time_major(delta)
    grad_A = torch.zeros_like(scan.A)
    grad_B, grad_C = empty_time_major(B), empty_time_major(C)
    carry = scan.A.new_zeros(scan.state_shape)  # what the state after this chunk receives from later chunks
    for i, start in reversed(list(enumerate(scan.starts()))):
        chunk = scan.run(start, states[i])
        steps = len(chunk.delta)
        window = slice(start, start + steps)
        decay, h, g = scan.decay[:steps], scan.h[:steps], grad_h[:steps]
        gy = scan.take(grad_y, start)  # (K, B, D)

        torch.mul(gy.unsqueeze(2), chunk.C.unsqueeze(3), out=g)
        grad_h_steps[steps - 1].add_(carry)
        for t in range(steps - 2, -1, -1):
            grad_h_steps[t].addcmul_(scan.decay_steps[t + 1], grad_h_steps[t + 1])
        carry = hardshrink(scan.decay_steps[0] * grad_h_steps[0], scan.min_state)

        # as row vectors: BLAS takes three times as long for a matrix times a column
        x = chunk.delta * chunk.u
        grad_C[:, :, window] = torch.matmul(gy.unsqueeze(2), h.mT).squeeze(2).permute(1, 2, 0)
        grad_B[:, :, window] = torch.matmul(x.unsqueeze(2), g.mT).squeeze(2).permute(1, 2, 0)
        grad_x = torch.matmul(chunk.B.unsqueeze(2), g).squeeze(2)  # gradient of delta * u, (K, B, D)

        # gradient of the exponent delta * A: g[t] * decay[t] * h[t - 1]
        grad_exponent = decay.mul_(g)
        grad_exponent[1:].mul_(h[:-1])
        grad_exponent[0].mul_(states[i])
        grad_delta_chunk = grad_x * chunk.u
        for grad_exponent_n, A_n in zip(grad_exponent.unbind(2), scan.A):
            grad_delta_chunk.addcmul_(grad_exponent_n, A_n)
        grad_A += grad_exponent.mul_(chunk.delta.unsqueeze(2)).sum((0, 1))

        grad_u[:, :, window] = (grad_x * chunk.delta).permute(1, 2, 0)
        grad_delta[:, :, window] = grad_delta_chunk.permute(1, 2, 0)
    return grad_u, grad_delta, grad_A.t().contiguous().to(A.dtype), grad_B, grad_C
