"""What of a batch is image and what is padding, and positions that span the image."""

from collections.abc import Sequence

import torch
from torch import Tensor


def divide_up(size: Sequence[int], by: int) -> tuple[int, int]:
    """Height and width divided and rounded up.

    Without the usual double negation, since ONNX rounds quotients below zero up.
    """
    return (size[0] + by - 1) // by, (size[1] + by - 1) // by


def content_size(images: Tensor) -> Tensor:
    """Height and width of each image of a batch without the zeros at its bottom and right.

    The data preprocessors of mmdet and mmseg pad with zeros after they have normalised, and no whole row of an image
    is zero after that, unless the mean is a colour of it. A backbone learns in no other way what is padding.

    Args:
        images (Tensor): (B, channels, H, W).

    Returns:
        Tensor: Rows and columns up to the last pixel that is not zero in all channels, at least 1, (B, 2).
    """
    shown = (images != 0).any(1)  # (B, H, W)
    sizes = []
    for other in (2, 1):
        lines = shown.any(other)
        number = torch.arange(1, lines.shape[1] + 1, device=images.device)
        sizes.append((lines * number).amax(1))
    return torch.stack(sizes, 1).clamp(min=1)


def divide_each(sizes: Tensor, by: int) -> Tensor:
    """Rows and columns of each image, (B, 2), divided and rounded up."""
    return (sizes + by - 1) // by


def token_side(size: Sequence[int], grid: Sequence[int]) -> int:
    """Pixels to a side of the tokens of a map, the last of which may reach beyond the image.

    Args:
        size (Sequence[int]): Height and width of the image.
        grid (Sequence[int]): Rows and columns of its map.
    """
    return max((pixels + tokens - 1) // tokens for pixels, tokens in zip(size, grid))


def is_inside(size: Tensor, grid: tuple[int, int]) -> Tensor:
    """True for what lies within ``size`` rows and columns, (B, 2), of a grid: (B, *grid)."""
    rows, columns = (torch.arange(n, device=size.device) < size[:, i, None] for i, n in enumerate(grid))
    return rows[:, :, None] & columns[:, None]


def resample_positions(positions: Tensor, size: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings resampled to the image, whatever the padding around it.

    For each image what :func:`timm.layers.resample_abs_pos_embed` gives for a grid of its size, that is bicubic with
    antialiasing; padding has the positions of the border.

    Args:
        positions (Tensor): (rows, columns, C).
        size (Tensor): Rows and columns of tokens of each image, (B, 2).
        grid (tuple[int, int]): Rows and columns of all tokens.

    Returns:
        Tensor: (B, *grid, C).
    """
    rows, columns = (_cubic_weights(positions.shape[i], size[:, i], grid[i], positions.dtype) for i in (0, 1))
    B, C = size.shape[0], positions.shape[2]
    across = (rows @ positions.flatten(1)).view(B, grid[0], -1, C)  # (B, rows of the grid, columns, C)
    return columns[:, None] @ across


def _cubic_weights(source: int, size: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Share of each of ``source`` positions in each of ``length`` tokens, of which ``size`` span them: (B, L, S)."""
    step = source / size[:, None].to(dtype)  # (B, 1)
    place = (torch.arange(length, device=size.device).minimum(size[:, None] - 1) + 0.5) * step  # (B, L)
    centres = torch.arange(source, device=size.device) + 0.5
    d = ((centres - place[:, :, None]) / step.clamp(min=1)[:, :, None]).abs()  # (B, L, S)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2  # Keys, a = −0.5
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0))
    return weights / weights.sum(2, keepdim=True)
