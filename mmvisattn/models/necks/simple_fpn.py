"""The simple feature pyramid: all scales from one map."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import UserError
from ...registry import MODELS
from ..checks import check_numbers
from ..layers import LN2d
from ..layers.join_outputs import join_outputs

# Levels made from the map itself, at strides 4, 8, 16 and 32; further ones are subsampled.
NUM_MADE = 4


def conv_norm(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution without bias, then a norm over channels; no activation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm_layer=LN2d(out_channels)))


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Simple feature pyramid: maps at strides 4, 8, 16, 32, … from the one map of a plain backbone at stride 16.

    `Exploring Plain Vision Transformer Backbones for Object Detection <https://arxiv.org/abs/2203.16527>`_. There are
    no sums from the top down.

    Args:
        in_channels (int): Channels C of the map, a multiple of 4.
        out_channels (int): Channels of each level. Defaults to 256.
        num_outs (int): Number of levels; those above stride 32 take every second position of the one below. Defaults to
            4.
        start_level (int): First level that is returned: 0 for stride 4, 1 for stride 8, … Defaults to 0.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to Kaiming, normal, for the
            convolutions, as in the released detectors.

    Raises:
        UserError: If a number is out of range, or the backbone gives more than one map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 4,
        start_level: int = 0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        check_numbers(
            'SimpleFPN',
            in_channels=in_channels,
            out_channels=out_channels,
            num_outs=num_outs,
            start_level=start_level,
        )
        if in_channels % 4:
            raise UserError(f'SimpleFPN: `in_channels` is {in_channels}; it must be a multiple of 4')
        if start_level >= NUM_MADE:
            raise UserError(
                f'SimpleFPN: `start_level` is {start_level}; set it to 0 (stride 4) up to {NUM_MADE - 1} (stride 32)'
            )
        self.in_channels, self.num_outs = in_channels, num_outs
        half, quarter = in_channels // 2, in_channels // 4
        self.levels = range(start_level, min(start_level + num_outs, NUM_MADE))
        if 0 in self.levels:
            self.fpn1 = nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, 2),
                LN2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            )
        if 1 in self.levels:
            self.fpn2 = nn.Sequential(nn.ConvTranspose2d(in_channels, half, 2, 2))
        channels = (quarter, half, in_channels, in_channels)
        self.lateral_convs = nn.ModuleList(conv_norm(channels[i], out_channels, 1) for i in self.levels)
        self.fpn_convs = nn.ModuleList(conv_norm(out_channels, out_channels, 3) for _ in self.levels)

    def scale(self, x: Tensor, level: int) -> Tensor:
        """The map (B, C, H, W) at the stride of a level, before the convolutions that all levels have."""
        if level < 2:
            return self.fpn1(x) if level == 0 else self.fpn2(x)
        # A single row or column stays, so that every level exists.
        return x if level == 2 else F.max_pool2d(x, [1 if n == 1 else 2 for n in x.shape[2:]])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the levels of the pyramid.

        Args:
            inputs (Sequence[Tensor]): The one map of the backbone, (B, C, H, W), in a sequence.

        Returns:
            tuple[Tensor, ...]: ``num_outs`` maps with ``out_channels`` channels, from stride 4 · 2^start_level on: (4H,
            4W), (2H, 2W), (H, W), (H // 2, W // 2) or at least 1, and each further one half of that before, rounded up.
        """
        if len(inputs) != 1:
            raise UserError(
                f'SimpleFPN takes one map and was given {len(inputs)}; set `out_indices` of the backbone to one number'
            )
        outs = [
            fpn_conv(lateral_conv(self.scale(inputs[0], level)))
            for level, lateral_conv, fpn_conv in zip(self.levels, self.lateral_convs, self.fpn_convs)
        ]
        while len(outs) < self.num_outs:
            outs.append(outs[-1][..., ::2, ::2].contiguous())  # heads of DETR make a view of it
        return join_outputs(outs, self.training)
