"""A first look at the image for what is smaller than a low-resolution patch."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.common import at_least_float32
from .norm import LN2d
from .padding import is_inside

CHANNELS = (16, 32, 48)
PLACES = 4  # to a side of a patch, about
PIXELS = 16  # to a side of a patch, at least, if the image has them: of what spans less, too little is left to judge


def sight(patch_size: int, zoom: int) -> int:
    """How much the image is shrunk for a scout: no more than for the low resolution, and less where patches are small.

    Args:
        patch_size (int): Side of a patch in pixels of the low resolution.
        zoom (int): How much the image is shrunk for that.

    Returns:
        int: A divisor of ``zoom``.
    """
    divisors = (n for n in range(zoom, 0, -1) if zoom % n == 0)
    return next((n for n in divisors if patch_size * zoom // n >= PIXELS), 1)


class Scout(nn.Module):
    """Three small convolutions that judge places in each patch of an image; a patch is worth its best one.

    Patches are projected as they lie, so a ViT has to learn a small thing anew for each place in a patch where it may
    be; a convolution sees it the same everywhere. Like the selectors of `QueryDet <https://arxiv.org/abs/2103.09136>`_
    (Yang et al., 2022) it is to be taught where objects are.

    Args:
        in_channels (int): Number of channels of the image.
        patch_size (int): Side of a patch in pixels of that image.
    """

    def __init__(self, in_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stride = 1
        while patch_size % (2 * self.stride) == 0 and 2 * self.stride * PLACES <= patch_size:
            self.stride *= 2  # a patch is a whole number of places
        # Small things have to meet filters before the map is made coarse.
        self.strides = [1 + (self.stride > 2), 1 + (self.stride > 1), max(self.stride // 4, 1)]
        sizes = [in_channels, *CHANNELS]
        self.convs = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], 3, step, padding=1) for i, step in enumerate(self.strides)
        )
        self.norms = nn.ModuleList(LN2d(channels) for channels in CHANNELS)
        self.judge = nn.Conv2d(CHANNELS[-1], 1, 1)
        assert self.judge.bias is not None
        nn.init.constant_(self.judge.bias, -4.0)  # few places are worth a closer look

    def forward(self, image: Tensor, shown: Tensor | None = None) -> Tensor:
        """Judge the patches.

        Args:
            image (Tensor): (B, in_channels, H, W), H and W multiples of ``patch_size``.
            shown (Tensor, optional): Rows and columns of patches that each image spans, (B, 2), where the rest is
                padding; None where there is none.

        Returns:
            Tensor: A logit for each patch, (B, H / patch_size, W / patch_size), in float32 at least.
        """
        x, stride = image, 1
        for conv, norm, step in zip(self.convs, self.norms, self.strides):
            stride *= step
            x = F.gelu(norm(conv(x)))
            if shown is not None:  # beyond its border an image sees zeros, whatever else is in the batch
                x = x * is_inside(shown * (self.patch_size // stride), (x.shape[2], x.shape[3]))[:, None]
        return F.max_pool2d(at_least_float32(self.judge(x)), self.patch_size // stride).squeeze(1)
