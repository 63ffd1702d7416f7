"""Backend ``triton``: CUDA kernels in Triton, forward and backward."""

from types import ModuleType

import torch
from torch import Tensor

from ..triton_support import on_device
from .common import CHUNK, num_chunks, state_dtype

_LOG2_E = 1.4426950408889634
_ELEMENTS_PER_WARP = 128  # state entries: four a thread
_WARPS_PER_MULTIPROCESSOR = 16
_MAX_SEGMENTS = 8
_MIN_CHUNKS_PER_SEGMENT = 4


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _segments(batch: int, dim_blocks: int, length: int, device: torch.device) -> int:
    """Parts of the sequence that run side by side: enough to fill the GPU, yet each some chunks long."""
    if device.type != 'cuda':
        return 1
    wanted = _WARPS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    most = min(_MAX_SEGMENTS, num_chunks(length) // _MIN_CHUNKS_PER_SEGMENT)
    return max(1, min(most, wanted // (batch * dim_blocks)))


class _Launch:
    """Grid, block sizes and the inputs in the layout of the kernels."""

    def __init__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
        import triton
        import triton.language as tl

        self.dtype = state_dtype(u, delta, A, B, C)
        (self.batch, self.dim, self.length), self.state = u.shape, A.shape[1]
        self.u, self.delta = self.time_major(u), self.time_major(delta)
        self.A = (A.to(self.dtype) * _LOG2_E).contiguous()
        self.B, self.C = self.time_major(B.to(self.dtype)), self.time_major(C.to(self.dtype))
        block_n = triton.next_power_of_2(self.state)
        block_d = max(1, _ELEMENTS_PER_WARP // block_n)
        self.dim_blocks = triton.cdiv(self.dim, block_d)
        segments = _segments(self.batch, self.dim_blocks, self.length, u.device)
        self.segment_length = triton.cdiv(num_chunks(self.length), segments) * CHUNK
        self.segments = triton.cdiv(self.length, self.segment_length)
        self.grid = (self.dim_blocks, self.segments, self.batch)
        self.sizes = (self.dim, self.length, self.segment_length)
        self.constants = dict(
            N=self.state,
            BLOCK_D=block_d,
            BLOCK_N=block_n,
            ACC=tl.float64 if self.dtype == torch.float64 else tl.float32,
            num_warps=1,
            enable_fp_fusion=True,
        )

    @staticmethod
    def time_major(x: Tensor) -> Tensor:
        """(B, D, L) as contiguous (B, L, D)."""
        return x.transpose(1, 2).contiguous()

    def parts(self, u: Tensor, B: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """State and sum of delta of each segment; not needed, and left unwritten, if there is only one."""
        state = self.A.new_empty((self.batch, self.segments, self.dim, self.state))
        delta = self.A.new_empty((self.batch, self.segments, self.dim))
        if self.segments > 1:
            _kernels().segment_kernel[self.grid](
                u, self.delta, self.A, B, state, delta, *self.sizes, **self.constants, REVERSE=reverse
            )
        return state, delta


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, save_states: bool) -> tuple[Tensor, Tensor]:
    """Result (B, D, L) in time-major memory, and the states (chunks, B, N, D) before each chunk where wanted."""
    launch = _Launch(u, delta, A, B, C)
    y = torch.empty_like(launch.u)
    chunks = num_chunks(launch.length) if save_states else 0
    states = launch.A.new_empty((chunks, launch.batch, launch.state, launch.dim))
    with on_device(launch.u.device):
        parts = launch.parts(launch.u, launch.B, reverse=False)
        _kernels().forward_kernel[launch.grid](
            launch.u, launch.delta, launch.A, launch.B, launch.C, y, states, *parts, *launch.sizes,
            **launch.constants, CHUNK=CHUNK, SAVE_STATES=save_states,
        )  # fmt: skip
    return y.transpose(1, 2), states


def backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs, all but that of A in time-major memory, from the states saved by ``forward``."""
    launch = _Launch(u, delta, A, B, C)
    grad_y = launch.time_major(grad_y)
    grad_u, grad_delta = torch.empty_like(launch.u), torch.empty_like(launch.delta)
    by_segment = (launch.batch, launch.segments)
    grad_A = launch.A.new_empty((*by_segment, launch.dim, launch.state))
    scratch = launch.A.new_empty((*by_segment, CHUNK, launch.dim, launch.state))
    # Programs add to one sum in the order in which they come; each gets its own where results must be reproducible.
    slots = launch.dim_blocks if torch.are_deterministic_algorithms_enabled() else 1
    grad_B, grad_C = launch.A.new_zeros((2, launch.batch, slots, launch.length, launch.state)).unbind(0)
    with on_device(launch.u.device):
        parts = launch.parts(grad_y, launch.C, reverse=True)
        _kernels().backward_kernel[launch.grid](
            grad_y, launch.u, launch.delta, launch.A, launch.B, launch.C, states, *parts, scratch,
            grad_u, grad_delta, grad_A, grad_B, grad_C, *launch.sizes, slots, **launch.constants, CHUNK=CHUNK,
        )  # fmt: skip
    return (
        grad_u.transpose(1, 2),
        grad_delta.transpose(1, 2),
        grad_A.sum((0, 1)).to(A.dtype),
        grad_B.sum(1).to(B.dtype).transpose(1, 2),
        grad_C.sum(1).to(C.dtype).transpose(1, 2),
    )
