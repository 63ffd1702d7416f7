"""What all backends share: the checkpoint interval, the types and the layout of results."""

import torch
from torch import Tensor

# Steps between two saved states. The saved states take N / CHUNK times the memory of u (in the state's type).
CHUNK = 32


def num_chunks(length: int) -> int:
    """Number of saved states for a sequence of ``length`` steps."""
    return (length + CHUNK - 1) // CHUNK


def state_dtype(*tensors: Tensor) -> torch.dtype:
    """Type of the state: float64 where any input is, otherwise float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def empty_time_major(like: Tensor) -> Tensor:
    """Uninitialised tensor of the shape (B, D, L) and type of ``like`` over contiguous (B, L, D) memory."""
    batch, dim, length = like.shape
    return like.new_empty((batch, length, dim)).transpose(1, 2)
