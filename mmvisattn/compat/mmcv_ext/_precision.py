"""The types the kernels work in."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Float64 stays, anything narrower becomes float32.

    torchvision's kernels have no bfloat16, and on the CPU no float16; coordinates and sums are coarse in both.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()
