"""Backend ``torch``: both gradients as forward convolutions; in plain PyTorch, on any device."""

import torch.nn.functional as F
from torch import Tensor


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """(B, C, H, W) with kernels (C, 1, k, l) → (B, C, H', W')."""
    return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])


def input_gradient(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
    """(B, C, H', W') with kernels (C, 1, k, l) → (B, C, H, W)."""
    pad_y, pad_x = (k - 1 - padding for k in weight.shape[2:])
    if pad_y < 0 or pad_x < 0:  # the outermost of the gradient belongs to padding alone
        grad, pad_y, pad_x = F.pad(grad, (pad_x, pad_x, pad_y, pad_y)), 0, 0
    return F.conv2d(grad, weight.flip(2, 3), padding=(pad_y, pad_x), groups=grad.shape[1])


def weight_gradient(grad: Tensor, x: Tensor, padding: int) -> Tensor:
    """(B, C, H', W') and (B, C, H, W) → (C, 1, k, l)."""
    batch, channels = x.shape[:2]
    image = x.reshape(1, batch * channels, *x.shape[2:])
    kernel = grad.reshape(batch * channels, 1, *grad.shape[2:])
    out = F.conv2d(image, kernel, padding=padding, groups=batch * channels)
    return out.view(batch, channels, 1, *out.shape[2:]).sum(0)
