"""An image as a sequence of patches, and the sequence as a map again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .padding import divide_up

PATCH_SIZE = 16
TOKEN_ORDERS = ('window', 'raster')


def window_grid(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int, int]:
    """Number of windows down and across, and of tokens up to the last valid one, in window order."""
    (height, width), (wh, ww) = size, window
    rows, cols = (height + wh - 1) // wh, (width + ww - 1) // ww  # ONNX rounds quotients below zero up
    last_row, last_col = height - (rows - 1) * wh, width - (cols - 1) * ww
    return rows, cols, (rows * cols - 1) * wh * ww + (last_row - 1) * ww + last_col


def to_sequence(x: Tensor, size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Order a map window by window, windows in row-major order and tokens in raster order inside each.

    Args:
        x (Tensor): Map, (B, C, rows · wh, cols · ww): already padded to whole windows.
        size (tuple[int, int]): Height and width of the part that is not padding.
        window (tuple[int, int]): Height and width (wh, ww) of a window.

    Returns:
        Tensor: (B, L, C); the sequence ends with the last token that is not padding.
    """
    B, C = x.shape[:2]
    rows, cols, length = window_grid(size, window)
    x = x.reshape(B, C, rows, window[0], cols, window[1]).permute(0, 2, 4, 3, 5, 1)  # (B, rows, cols, wh, ww, C)
    return x.flatten(1, 4)[:, :length]


def to_map(x: Tensor, size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Undo :func:`to_sequence` exactly.

    Args:
        x (Tensor): Sequence, (B, L, C).
        size (tuple[int, int]): Height and width of the map without padding.
        window (tuple[int, int]): Height and width (wh, ww) of a window.

    Returns:
        Tensor: (B, C, height, width).
    """
    (height, width), (wh, ww) = size, window
    _, cols, _ = window_grid(size, window)
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    # Where each position is in the sequence. Taken one by one the map is whole in memory whatever the size, so that a
    # compiled graph serves all sizes, and nothing is padded.
    index = (row // wh * cols * wh + row % wh + column // ww * wh) * ww + column % ww  # (height, width)
    return x.index_select(1, index.flatten()).view(x.shape[0], height, width, x.shape[2]).permute(0, 3, 1, 2)


class PatchSequence(nn.Module):
    """Embed patches of 16×16 pixels and put them in order.

    In ``'window'`` order the image is zero-padded at the bottom and right to a multiple of the size of pretraining, and
    the patches of one such square follow each other, so that a network meets the sequences that it was pretrained on.
    In ``'raster'`` order the image is padded to whole patches. Padding after the last valid patch is left out: causal
    networks cannot see it.

    Args:
        embed_dims (int): Number of channels C.
        token_order (str): ``'window'`` or ``'raster'``.
        pretrain_size (int): Side in pixels of the images of pretraining, a multiple of 16; used by ``'window'``.
        in_channels (int): Number of channels of the image.

    Raises:
        UserError: If ``token_order`` is unknown or ``pretrain_size`` does not hold whole patches.
    """

    def __init__(
        self, embed_dims: int, token_order: str = 'window', pretrain_size: int = 224, in_channels: int = 3
    ) -> None:
        super().__init__()
        if token_order not in TOKEN_ORDERS:
            raise UserError(f'`token_order` is {token_order!r}; set it to one of {TOKEN_ORDERS}')
        if pretrain_size < PATCH_SIZE or pretrain_size % PATCH_SIZE:
            raise UserError(
                f'`pretrain_size` is {pretrain_size}; set it to the side in pixels of the images of pretraining, a '
                f'multiple of {PATCH_SIZE}: 224 for the small and base, 384 for the large networks'
            )
        self.window = pretrain_size // PATCH_SIZE if token_order == 'window' else None
        self.projection = nn.Conv2d(in_channels, embed_dims, PATCH_SIZE, PATCH_SIZE)

    def layout(self, image: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width in patches, rounded up, of an image (…, H, W) and of the windows it is cut in."""
        height, width = image.shape[-2:]
        size = divide_up((height, width), PATCH_SIZE)
        return size, (self.window, self.window) if self.window else size

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, L, C)."""
        height, width = image.shape[-2:]
        size, window = self.layout(image)
        # Whole windows, in terms of their number: a graph of any size has to see that they are whole.
        down, across = ((n + m - 1) // m * m * PATCH_SIZE for n, m in zip(size, window))
        x = self.projection(F.pad(image, (0, across - width, 0, down - height)))
        return to_sequence(x, size, window)
