"""FCViT, a fully convolutional vision transformer.

`A Close Look at Spatial Modeling: From Attention to Convolution <https://arxiv.org/abs/2212.12552>`_ (Ma et al., 2022)
replaces attention by a *weighted global context*: each position is weighted by its similarity to the mean of the map,
and what is weighted is a bottleneck of that mean. The cost is linear in the number of positions. The released
classifiers (Apache-2.0) load as they are; parameters bear the names of those files.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...ops.common import channels_last_on_cpu
from ...ops.depthwise_conv import DepthwiseConv2d
from ...ops.gelu_sum import gelu_sum
from ...ops.global_context import global_context
from ...ops.inverted_bottleneck import inverted_bottleneck
from ...ops.pointwise_conv import PointwiseConv2d
from ...registry import MODELS
from ..checks import check_hidden, check_numbers, check_sequences
from ..layers import DropPath, init_linear
from ..layers.join_outputs import join_outputs
from .base_backbone import BaseBackbone, drop_path_rates, run_blocks

# Fixed in every released model.
NUM_HEADS = 8
REDUCTION = 8
KERNEL_SIZE = 11


def init_conv(module: nn.Module) -> None:
    """Draw the kernels of all convolutions from N(0, √(2 / fan_out)), fan_out = k² · C_out / groups; biases are zero.

    Kaiming's rule counts what a group sends out. torch's does not divide by the groups, which would make a depthwise
    kernel √C times smaller.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.weight[0, 0].numel() * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=(2 / fan_out) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class GlobalContext(nn.Module):
    """Weighted global context: per-head similarity to the mean, times a bottleneck of the mean.

    Args:
        dim (int): Number of channels C, a multiple of 8.
        compete (bool): Let two halves of the bottleneck compete (element-wise maximum); otherwise GELU.
    """

    def __init__(self, dim: int, compete: bool = True) -> None:
        super().__init__()
        self.compete = compete
        hidden = dim // REDUCTION
        self.fc1 = nn.Linear(dim, 2 * hidden if compete else hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.rescale_weight = nn.Parameter(torch.ones(NUM_HEADS))
        self.rescale_bias = nn.Parameter(torch.zeros(NUM_HEADS))

    def bottleneck(self, pooled: Tensor) -> Tensor:
        """(B, C) → (B, C)."""
        hidden = self.fc1(pooled)
        hidden = torch.maximum(*hidden.chunk(2, -1)) if self.compete else F.gelu(hidden)
        return self.fc2(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``x + GC(x)``: (B, C, H, W) → (B, C, H, W), the residual sum taken in the same pass."""
        return global_context(x, self.bottleneck, self.rescale_weight, self.rescale_bias)


class TokenMixer(nn.Module):
    """Mixing between positions: twice a global context, a large depthwise and a pair of 1×1 convolutions.

    Args:
        dim (int): Number of channels.
        compete (bool): See :class:`GlobalContext`.
    """

    def __init__(self, dim: int, compete: bool = True) -> None:
        super().__init__()
        hidden = max(dim // 8, 16)
        self.gc1 = GlobalContext(dim, compete)
        self.dw1 = DepthwiseConv2d(dim, KERNEL_SIZE)
        self.fc1 = nn.Sequential(PointwiseConv2d(dim, hidden), nn.GELU(), PointwiseConv2d(hidden, dim))
        self.gc2 = GlobalContext(dim, compete)
        self.dw2 = DepthwiseConv2d(dim, KERNEL_SIZE)
        self.fc2 = nn.Sequential(PointwiseConv2d(dim, hidden), nn.GELU(), PointwiseConv2d(hidden, dim))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), before the last GELU, which goes with the residual sum."""
        x = self.act(self.fc1(self.dw1(self.gc1(x))))
        return self.fc2(self.dw2(self.gc2(x)))


class ChannelMixer(nn.Module):
    """Mixing between channels: an inverted bottleneck with a 3×3 depthwise convolution.

    Args:
        dim (int): Number of channels.
        hidden_dim (int): Number of channels inside.
        drop_rate (float): Dropout rate after the activation and at the end.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = PointwiseConv2d(dim, hidden_dim)
        self.dwconv = DepthwiseConv2d(hidden_dim, 3)
        self.fc2 = PointwiseConv2d(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), with the channels that go out scaled by (C,) if asked for."""
        dropout = self.drop.p if self.drop.training else 0.0
        return self.drop(inverted_bottleneck(x, self.fc1, self.dwconv, self.fc2, dropout, scale))


class Block(nn.Module):
    """Token mixer and channel mixer, each behind a norm, with layer scale, drop path and a residual sum.

    Args:
        dim (int): Number of channels.
        mlp_ratio (float): Width of the channel mixer as a multiple of ``dim``.
        compete (bool): See :class:`GlobalContext`.
        drop_rate (float): Dropout rate in the channel mixer.
        drop_path_rate (float): Rate at which a sample skips a branch.
        layer_scale_init_value (float): Initial value of the layer scales.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        compete: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.token_mixer = TokenMixer(dim, compete)
        self.norm2 = nn.GroupNorm(1, dim)
        self.channel_mixer = ChannelMixer(dim, int(dim * mlp_ratio), drop_rate)
        self.layer_scale_1 = nn.Parameter(layer_scale_init_value * torch.ones(dim))
        self.layer_scale_2 = nn.Parameter(layer_scale_init_value * torch.ones(dim))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        branch = self.token_mixer(self.norm1(x))
        x = gelu_sum(x, self.layer_scale_1.view(-1, 1, 1) * self._kept(x), branch)
        full_precision = branch.dtype in (torch.float32, torch.float64)
        del branch  # the memory is at its peak inside the channel mixer
        scale, kept = self.layer_scale_2, self._kept(x)
        # Within the last product a scale costs no pass over the map, which then need not be kept for its gradient. In
        # half precision, and so in mixed precision, a weight times 1e-6 would be nothing.
        if full_precision:
            return torch.addcmul(x, kept, self.channel_mixer(self.norm2(x), scale))
        return torch.addcmul(x, scale.view(-1, 1, 1) * kept, self.channel_mixer(self.norm2(x)))

    def _kept(self, x: Tensor) -> Tensor:
        """What drop path makes of a branch of ones, (B, 1, 1, 1): a sample that is dropped has a zero."""
        return self.drop_path(self.layer_scale_1.new_ones(x.shape[0], 1, 1, 1))


class PatchEmbed(nn.Module):
    """Strided convolution and BatchNorm: the stem, and the step down between two stages.

    Args:
        in_dim (int): Number of channels that come in.
        dim (int): Number of channels that go out.
        kernel_size (int): Side of the kernel in pixels; half of it is padded.
        stride (int): Step in pixels.
    """

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size, stride, kernel_size // 2)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, ceil(H / stride), ceil(W / stride)) for strides 2 and 4."""
        return self.norm(self.proj(x))


@MODELS.register_module()
class FCViT(BaseBackbone):
    """Fully convolutional vision transformer, as a backbone of four stages at strides 4, 8, 16 and 32.

    `A Close Look at Spatial Modeling: From Attention to Convolution <https://arxiv.org/abs/2212.12552>`_. Only the
    stages and norms that ``out_indices`` asks for are built. In training the use of one map gives all parameters a
    gradient.

    Args:
        arch (str | dict): ``'tiny'``, ``'b12'``, ``'b24'``, ``'b48'``, or a dict with ``embed_dims`` (channels,
            multiples of 8), ``depths`` (blocks) and ``mlp_ratios``, each a sequence with one entry a stage. Defaults to
            ``'b12'``.
        out_indices (Sequence[int]): Numbers of the stages to return, from 0. Defaults to all four.
        frozen_stages (int): Number of the last frozen stage, counted from 1; 0 freezes the stem alone, -1 nothing.
            Defaults to -1.
        norm_eval (bool): Keep BatchNorm in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute each block in the backward instead of keeping its activations. Defaults to False.
        drop_rate (float): Dropout rate in the channel mixers. Defaults to 0.
        drop_path_rate (float): Drop path rate of the last block; rises linearly from 0 over the blocks. Defaults to 0.
        layer_scale_init_value (float): Initial value of the layer scales. Defaults to 1e-6.
        compete (bool): Let two halves of each bottleneck compete, as in every released model. Defaults to True.
        in_channels (int): Number of channels of the image; weights for RGB are fitted to it as they load. Defaults to
            3.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to None, the initialisation
            of the released code.

    Raises:
        UserError: If an argument is out of range, or an image is too small for the last stage.
    """

    # https://github.com/ma-xu/FCViT
    arch_settings = {
        'tiny': dict(embed_dims=(32, 64, 160, 320), depths=(3, 3, 5, 2), mlp_ratios=(8, 8, 4, 4)),
        'b12': dict(embed_dims=(64, 128, 320, 512), depths=(2, 2, 6, 2), mlp_ratios=(8, 8, 4, 4)),
        'b24': dict(embed_dims=(64, 128, 320, 512), depths=(4, 4, 12, 4), mlp_ratios=(8, 8, 4, 4)),
        'b48': dict(embed_dims=(64, 128, 320, 512), depths=(8, 8, 24, 8), mlp_ratios=(8, 8, 4, 4)),
    }

    def __init__(
        self,
        arch: str | dict = 'b12',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        compete: bool = True,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(frozen_stages, norm_eval, in_channels, init_cfg)
        sizes = self.parse_arch(arch)
        embed_dims, depths, mlp_ratios = sizes['embed_dims'], sizes['depths'], sizes['mlp_ratios']
        check_sequences('FCViT', **sizes)
        check_numbers(
            'FCViT',
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
        )
        if any(dim % NUM_HEADS for dim in embed_dims):
            raise UserError(f'FCViT: `embed_dims` is {embed_dims}; each must be a multiple of {NUM_HEADS}, the heads')
        for dim, mlp_ratio in zip(embed_dims, mlp_ratios):
            check_hidden('FCViT', dim, mlp_ratio, 'mlp_ratios')
        self.out_indices = self.check_out_indices(out_indices, len(depths))
        self.check_frozen_stages(frozen_stages, len(depths))
        self.with_cp = with_cp
        self.depths = depths[: self.out_indices[-1] + 1]
        self.size_step = 2 ** (self.out_indices[-1] + 2)

        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.patch_embed = PatchEmbed(in_channels, embed_dims[0], kernel_size=7, stride=4)
        self.network = nn.ModuleList()  # stage, step down, stage, … as the released files number them
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                self.network.append(PatchEmbed(embed_dims[stage - 1], embed_dims[stage], 3, 2))
            self.network.append(
                nn.Sequential(
                    *(
                        Block(
                            embed_dims[stage],
                            mlp_ratios[stage],
                            compete,
                            drop_rate,
                            next(rates),
                            layer_scale_init_value,
                        )
                        for _ in range(depth)
                    )
                )
            )
        for stage in self.out_indices:
            self.add_module(f'norm{2 * stage}', nn.GroupNorm(1, embed_dims[stage]))
        init_linear(self)
        init_conv(self)
        self._freeze_stages()

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The stem (stage 0), or the step down, blocks and output norm of a stage counted from 1."""
        if stage == 0:
            return [self.patch_embed]
        if stage > len(self.depths):
            return []
        parts = [self.network[2 * stage - 2]]
        if stage > 1:
            parts.append(self.network[2 * stage - 3])
        if stage - 1 in self.out_indices:
            parts.append(getattr(self, f'norm{2 * stage - 2}'))
        return parts

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Stem 0, then one layer a stage, as ConvNeXt counts; a step down counts with its stage, output norms last."""
        num_layers = len(self.depths) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if parts[0] == 'patch_embed':
            return 0, num_layers
        if parts[0] != 'network':
            return num_layers - 1, num_layers
        return (int(parts[1]) + 1) // 2 + 1, num_layers

    @property
    def new_keys(self) -> list[str]:
        """The output norms, which a classifier's checkpoint does not have."""
        return [f'norm{2 * i}.{leaf}' for i in self.out_indices for leaf in ('weight', 'bias')]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Images, (B, in_channels, H, W). H and W may be any numbers that leave the last stage something
                to shrink.

        Returns:
            tuple[Tensor, ...]: A map (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) for each stage i, at strides 4,
            8, 16, 32.
        """
        self.check_input(x, min_size=2 ** self.out_indices[-1] * 2 + 1)
        x = self.patch_embed(channels_last_on_cpu(x))
        outs = []
        for i, part in enumerate(self.network):
            x = run_blocks(part.children(), x, self.with_cp and self.training) if i % 2 == 0 else part(x)
            if i % 2 == 0 and i // 2 in self.out_indices:
                outs.append(getattr(self, f'norm{i}')(x))
        return join_outputs(outs, self.training)
