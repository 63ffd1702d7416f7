"""Deformable convolution v1 and v2 (arXiv 1703.06211, 1811.11168) as ``mmcv._ext`` offers them.

torchvision's kernels take the same layout of offsets, masks and groups; ``im2col_step`` only says how many samples
compiled mmcv does at a time, and torchvision chooses that itself.
"""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from ._precision import widen


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution to ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        weight (Tensor): (C_out, C / group, kH, kW).
        offset (Tensor): (B, 2 * deformable_group * kH * kW, H_out, W_out), y before x.
        output (Tensor): (B, C_out, H_out, W_out) buffer.
        columns (Tensor): Scratch.
        ones (Tensor): Scratch.
        kW (int): Kernel width; ``kH`` its height.
        kH (int): See ``kW``.
        dW (int): Stride in x; ``dH`` in y.
        dH (int): See ``dW``.
        padW (int): Padding in x; ``padH`` in y.
        padH (int): See ``padW``.
        dilationW (int): Dilation in x; ``dilationH`` in y.
        dilationH (int): See ``dilationW``.
        group (int): Groups of the convolution.
        deformable_group (int): Groups of channels with offsets of their own.
        im2col_step (int): Not needed.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients to ``gradInput`` and ``gradOffset``; arguments as in the forward function."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _backward(gradOutput, input, weight, offset, None, None, geometry)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])
    # torchvision gives all gradients at once. The caller hands the same scratch tensor on when it asks for the
    # weight's, so that is where it waits.
    columns.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient to ``gradWeight``; arguments as in the forward function."""
    if columns.shape == gradWeight.shape:
        grad = columns
    else:
        geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        grad = _backward(gradOutput, input, gradWeight, offset, None, None, geometry)[1]
    gradWeight.add_(grad.to(gradWeight.dtype), alpha=scale)
    columns.resize_(0)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolution to ``output``.

    Args:
        input (Tensor): (B, C, H, W).
        weight (Tensor): (C_out, C / group, kernel_h, kernel_w).
        bias (Tensor): (C_out,), or anything if not ``with_bias``.
        ones (Tensor): Scratch.
        offset (Tensor): (B, 2 * deformable_group * kernel_h * kernel_w, H_out, W_out), y before x.
        mask (Tensor): (B, deformable_group * kernel_h * kernel_w, H_out, W_out), factor of each sample.
        output (Tensor): (B, C_out, H_out, W_out) buffer.
        columns (Tensor): Scratch.
        kernel_h (int): Kernel height.
        kernel_w (int): Kernel width.
        stride_h (int): Stride in y.
        stride_w (int): Stride in x.
        pad_h (int): Padding in y.
        pad_w (int): Padding in x.
        dilation_h (int): Dilation in y.
        dilation_w (int): Dilation in x.
        group (int): Groups of the convolution.
        deformable_group (int): Groups of channels with offsets of their own.
        with_bias (bool): Whether to add ``bias``.
    """
    geometry = (
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group,
    )  # fmt: skip
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients to the ``grad_*`` buffers; arguments as in the forward function."""
    geometry = (
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group,
    )  # fmt: skip
    grads = _backward(grad_output, input, weight, offset, mask, bias if with_bias else None, geometry)
    buffers = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        buffers.append(grad_bias)
    for buffer, grad in zip(buffers, grads):
        buffer.copy_(grad)


def _prepare(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None) -> list[Tensor]:
    # torchvision takes a tensor for what is not used as well.
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [widen(tensor) for tensor in (input, weight, offset, mask, bias)]


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    tensors = _prepare(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    tensors = _prepare(input, weight, offset, mask, bias)
    grad_output = grad_output.to(tensors[0].dtype)
    return torch.ops.torchvision._deform_conv2d_backward(grad_output, *tensors, *geometry, mask is not None)
