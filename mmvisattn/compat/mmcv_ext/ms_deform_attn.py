"""Multi-scale deformable attention (arXiv 2010.04159) as ``mmcv._ext`` offers it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import widen


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sum of values sampled at a few places on every level.

    Args:
        value (Tensor): (B, sum of H*W over levels, heads, D).
        value_spatial_shapes (Tensor): (levels, 2), H and W of each level.
        value_level_start_index (Tensor): Not needed; levels follow one another.
        sampling_locations (Tensor): (B, Q, heads, levels, points, 2), x and y with 0 and 1 at the edges of the map.
        attention_weights (Tensor): (B, Q, heads, levels, points).
        im2col_step (int): Not needed; a batch is done at once.

    Returns:
        Tensor: (B, Q, heads * D).
    """
    return _attend(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients to ``grad_value``, ``grad_sampling_loc`` and ``grad_attn_weight``.

    Nothing of the forward pass is kept: the samples take points times the memory of the output.
    """
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
        output = _attend(inputs[0], value_spatial_shapes, inputs[1], inputs[2])
    for buffer, grad in zip(
        (grad_value, grad_sampling_loc, grad_attn_weight),
        torch.autograd.grad(output, inputs, grad_output),
        strict=True,
    ):
        buffer.copy_(grad)


def _attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    dtype = value.dtype
    value, locations, weights = widen(value), widen(locations), widen(weights)
    batch, _, heads, dim = value.shape
    queries = locations.size(1)
    sizes = shapes.tolist()
    output = value.new_zeros(batch * heads, dim, queries)
    levels = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in sizes], dim=-1)
    for level, ((h, w), level_value) in enumerate(zip(sizes, levels, strict=True)):
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (B*heads, Q, points, 2)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*heads, Q, points)
        samples = F.grid_sample(
            level_value.unflatten(-1, (h, w)), grid, padding_mode='zeros', align_corners=False
        )  # (B*heads, D, Q, points)
        output = output + (samples * weight[:, None]).sum(-1)
    # (B*heads, D, Q) -> (B, Q, heads*D)
    return output.view(batch, heads * dim, queries).transpose(1, 2).contiguous().to(dtype)
