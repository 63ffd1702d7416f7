"""A pair of 1×1 convolutions with a depthwise one between them, and many channels there."""

import torch.nn.functional as F
from torch import Tensor

from .common import is_plain, is_traced
from .depthwise_conv import DepthwiseConv2d, depthwise_conv2d
from .gelu_linear import gelu_linear
from .pointwise_conv import PointwiseConv2d, pointwise_conv2d

# Largest inner map on a CPU. Beyond it the allocator takes fresh pages from the system every time, and faulting them in
# costs more than the convolutions.
MAX_HIDDEN_BYTES = 8 * 2**20


def inverted_bottleneck(
    x: Tensor,
    expand: PointwiseConv2d,
    depthwise: DepthwiseConv2d,
    project: PointwiseConv2d,
    dropout: float = 0.0,
    scale: Tensor | None = None,
) -> Tensor:
    """``scale · project(dropout(gelu(depthwise(expand(x)))))``; on a CPU a large inner map never exists as a whole.

    Where a layer is more than its weights (:func:`~mmvisattn.ops.common.is_plain`), the three are called in turn.

    Args:
        x (Tensor): Input (B, C, H, W).
        expand (PointwiseConv2d): From C to the hidden channels.
        depthwise (DepthwiseConv2d): Over the hidden channels.
        project (PointwiseConv2d): From the hidden channels to the D that go out.
        dropout (float): Rate at which the hidden channels are dropped. Defaults to 0.
        scale (Tensor, optional): What the channels that go out are multiplied with, (D,). Defaults to None.

    Returns:
        Tensor: (B, D, H, W).
    """
    layers = ((expand, PointwiseConv2d), (depthwise, DepthwiseConv2d), (project, PointwiseConv2d))
    if not all(is_plain(layer, kind) for layer, kind in layers):
        hidden = F.gelu(depthwise(expand(x)))
        out = project(F.dropout(hidden, dropout) if dropout else hidden)
        return out if scale is None else out * scale.view(-1, 1, 1)
    weight: Tensor = project.weight
    bias: Tensor = project.bias
    if scale is not None:  # of the kernel, which is smaller than the map
        weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale
    if x.device.type == 'cpu' and not is_traced():
        hidden_bytes = x.numel() // x.shape[1] * expand.out_channels * x.element_size()
        return _in_chunks(x, expand, depthwise, weight, bias, dropout, max(-(-hidden_bytes // MAX_HIDDEN_BYTES), 1))
    hidden = F.gelu(depthwise(expand(x)))
    return pointwise_conv2d(F.dropout(hidden, dropout) if dropout else hidden, weight, bias)


def _in_chunks(
    x: Tensor,
    expand: PointwiseConv2d,
    depthwise: DepthwiseConv2d,
    weight: Tensor,
    bias: Tensor,
    dropout: float,
    chunks: int,
) -> Tensor:
    """The same over groups of hidden channels: they meet in the last convolution only, as terms of its sum."""
    out: Tensor | None = None
    for expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight in zip(
        expand.weight.chunk(chunks),
        expand.bias.chunk(chunks),
        depthwise.weight.chunk(chunks),
        depthwise.bias.chunk(chunks),
        weight.chunk(chunks, dim=1),
    ):
        hidden = pointwise_conv2d(x, expand_weight, expand_bias)
        hidden = depthwise_conv2d(hidden, depthwise_weight, depthwise_bias, depthwise.kernel_size[0] // 2)
        tokens = hidden.permute(0, 2, 3, 1).flatten(0, 2)  # (BHW, channels of the group)
        kernel = project_weight.flatten(1)  # (D, channels of the group)
        out = gelu_linear(tokens, kernel, bias if out is None else out, dropout)
    assert out is not None  # there is a group
    return out.unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)
