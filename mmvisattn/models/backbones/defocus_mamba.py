"""De-focus Mamba: state space models on image sequences, with a learnable bandpass filter.

`Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_ (Tao et
al., 2024). The released classifiers and detectors (MIT) load as they are; parameters bear the names of those files.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError, nearest
from ...ops.causal_conv import CausalDepthwiseConv1d
from ...ops.common import at_least_float32, is_plain
from ...ops.selective_scan import BACKENDS, scan_tokens, unavailable_reason
from ...registry import MODELS
from ..checks import check_numbers
from ..export import is_exported_to_onnx
from ..layers import DropPath, group_rms_norm, init_linear, rotate
from .base_backbone import drop_path_rates
from .sequence_backbone import SequenceBackbone

# Range of Δ that the bias of its projection starts from, one value a channel.
DELTA_MIN, DELTA_MAX = 1e-3, 0.1
# The released detectors, for 1024 pixels, by the size of the pretraining.
FROM_224 = dict(pretrain_size=224, rope_scale=20.0, delta_scale=4.57)
FROM_384 = dict(pretrain_size=384, rope_scale=7.13, delta_scale=2.67)


class RMSNorm(nn.Module):
    """Division by the root mean square, in float32, then a weight.

    Args:
        dim (int): Number of channels C.
        eps (float): Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., C) in the type of the weight."""
        normed = group_rms_norm(x, x.shape[-1], self.eps)
        return normed.to(self.weight.dtype) * self.weight


class Mixer(nn.Module):
    """Selective state space between a causal convolution and a gate, with rotation of its input and output weights.

    Args:
        dim (int): Number of channels C.
        d_inner (int): Width D inside.
        d_state (int): Entries N of the state of each channel.
        dt_rank (int): Rank of the projection to the step size Δ.
        group_norm_size (int): Channels that are normalised together after the scan.
        rope_scale (float): What positions are divided by for the rotation.
        delta_scale (float): What Δ is divided by.
        scan_backend (str): See :func:`mmvisattn.ops.selective_scan.selective_scan`.
    """

    def __init__(
        self,
        dim: int,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        group_norm_size: int,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        scan_backend: str = 'auto',
    ) -> None:
        super().__init__()
        self.group_norm_size = group_norm_size
        self.rope_scale = rope_scale
        self.delta_scale = delta_scale
        self.scan_backend = scan_backend

        entries = torch.arange(1, d_state + 1, dtype=torch.float64)
        self.A_log = nn.Parameter(entries.log().float().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.freq = nn.Parameter(((100 ** (-entries / d_state) - 0.01) / 0.99).float())
        self.conv1d = CausalDepthwiseConv1d(d_inner, kernel_size=4)
        self.in_proj = nn.Linear(dim, 2 * d_inner, bias=False)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.out_proj = nn.Linear(d_inner, dim, bias=False)
        init_linear(self)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        delta = torch.linspace(math.log(DELTA_MIN), math.log(DELTA_MAX), d_inner, dtype=torch.float64).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) → (B, L, C).

        Raises:
            FloatingPointError: On a CPU, if the state of the scan is lost to NaN or infinity.
        """
        u, gate = self.in_proj(x).chunk(2, -1)  # (B, L, D)
        u = F.silu(self.conv1d(u))
        dt, weights = self.x_proj(u).split((self.dt_proj.in_features, 2 * len(self.freq)), -1)
        weights = weights.unflatten(-1, (2, -1)).transpose(1, 2)  # (B, 2, L, N)
        B, C = rotate(weights, self.freq, self.rope_scale).unbind(1)

        u = at_least_float32(u)
        # In place where no gradient needs what was there: long sequences wait for memory.
        if is_plain(self.dt_proj, nn.Linear):
            delta = at_least_float32(F.linear(dt, self.dt_proj.weight)).add_(self.dt_proj.bias)
        else:
            delta = at_least_float32(self.dt_proj(dt))
        delta = F.softplus(delta).div_(self.delta_scale)
        A = -at_least_float32(self.A_log).exp()
        y = scan_tokens(u, delta, A, B, C, backend=self.scan_backend)  # (B, L, D)
        y = group_rms_norm(y, self.group_norm_size)
        y = torch.addcmul(y, self.D, u) * F.silu(at_least_float32(gate))
        return self.out_proj(y.to(x.dtype))


class Block(nn.Module):
    """A mixer behind a norm, with drop path and a residual sum.

    Args:
        dim (int): Number of channels C.
        mixer (nn.Module): What mixes the tokens, (B, L, C) → (B, L, C).
        drop_path_rate (float): Rate at which a sample skips the mixer.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        return x + self.drop_path(self.mixer(self.norm(x)))


@MODELS.register_module()
class DefocusMamba(SequenceBackbone):
    """De-focus Mamba, a plain causal backbone with one map of stride 16 for each entry of ``out_indices``.

    `Learning 1D Causal Visual Representation with De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_. The
    class token, last in the sequence, cannot influence the map: it is kept, frozen, for the sake of the released
    files, and not computed.

    Args:
        arch (str | dict): ``'small'``, ``'base'``, ``'large'``, or a dict with ``embed_dims`` (channels), ``depth``
            (blocks), ``d_inner`` (width inside, a multiple of ``group_norm_size``), ``d_state`` (entries of the state,
            even), ``dt_rank`` and ``group_norm_size`` (channels), which may hold the defaults of the three arguments
            after ``token_order`` too. Defaults to ``'base'``.
        token_order (str): ``'window'``: zero-pad the image to a multiple of ``pretrain_size`` and go through it square
            by square; ``'raster'``: row by row. Defaults to ``'window'``.
        pretrain_size (int, optional): Side of the images of pretraining in pixels, a multiple of 16. Defaults to that
            of the released files, 384 for ``'large'`` and otherwise 224.
        rope_scale (float, optional): What positions are divided by for the rotation; the square of the ratio of the
            side of the image to ``pretrain_size``, nominally. Defaults to that of the released detectors, for 1024
            pixels: 7.13 for ``'large'`` and otherwise 20.
        delta_scale (float, optional): What the step size Δ is divided by; the ratio of the sides, nominally. Defaults
            to that of the released detectors, for 1024 pixels: 2.67 for ``'large'`` and otherwise 4.57.
        scan_backend (str): Backend of the selective scan, see :func:`mmvisattn.ops.selective_scan.selective_scan`.
            Defaults to ``'auto'``.
        out_indices (Sequence[int]): Numbers of the blocks to return, from 0; each goes through the last norm. Defaults
            to the last.
        frozen_stages (int): Number of the last frozen block, counted from 1; 0 freezes the patch embedding alone, -1
            nothing. Defaults to -1.
        with_cp (bool): Recompute each block in the backward instead of keeping its activations. Defaults to False.
        drop_path_rate (float): Drop path rate of the last block; rises linearly from 0 over the blocks. Defaults to 0.
        in_channels (int): Number of channels of the image; weights for RGB are fitted to it as they load. Defaults to
            3.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to None, the initialisation
            of the paper.

    Raises:
        UserError: If an argument is out of range.
    """

    # https://github.com/OpenGVLab/De-focus-Attention-Networks
    arch_settings = {
        'small': dict(embed_dims=384, depth=24, d_inner=768, d_state=16, dt_rank=48, group_norm_size=64, **FROM_224),
        'base': dict(embed_dims=768, depth=24, d_inner=1536, d_state=16, dt_rank=48, group_norm_size=64, **FROM_224),
        'large': dict(embed_dims=1024, depth=48, d_inner=2048, d_state=16, dt_rank=48, group_norm_size=64, **FROM_384),
    }
    arch_arguments = ('pretrain_size', 'rope_scale', 'delta_scale')

    def __init__(
        self,
        arch: str | dict = 'base',
        token_order: str = 'window',
        pretrain_size: int | None = None,
        rope_scale: float | None = None,
        delta_scale: float | None = None,
        scan_backend: str = 'auto',
        out_indices: Sequence[int] = (-1,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        sizes = self.parse_arch(arch)
        given = dict(pretrain_size=pretrain_size, rope_scale=rope_scale, delta_scale=delta_scale)
        sizes |= {name: value for name, value in given.items() if value is not None}
        check_numbers('DefocusMamba', **sizes, drop_path_rate=drop_path_rate)
        if sizes['d_inner'] % sizes['group_norm_size']:
            raise UserError(
                f'DefocusMamba: `d_inner` is {sizes["d_inner"]}; it must be a multiple of `group_norm_size`, '
                f'{sizes["group_norm_size"]}'
            )
        if scan_backend not in ('auto', *BACKENDS):
            raise UserError(
                f'DefocusMamba has no scan_backend {scan_backend!r}{nearest(scan_backend, BACKENDS)}; set '
                f"`scan_backend` to 'auto' or one of {BACKENDS}"
            )
        reason = None if scan_backend == 'auto' else unavailable_reason(scan_backend)
        if reason:
            raise UserError(
                f"DefocusMamba: `scan_backend` is {scan_backend!r}, which cannot run here: {reason}; set it to 'auto'"
            )
        embed_dims, depth, pretrain_size = (sizes.pop(name) for name in ('embed_dims', 'depth', 'pretrain_size'))
        blocks = [
            Block(embed_dims, Mixer(embed_dims, **sizes, scan_backend=scan_backend), rate)
            for rate in drop_path_rates(drop_path_rate, depth)
        ]
        super().__init__(
            embed_dims,
            blocks,
            norm_eps=1e-5,
            token_order=token_order,
            pretrain_size=pretrain_size,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            in_channels=in_channels,
            init_cfg=init_cfg,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims), requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        """The logarithms of the rates of the states, as in Mamba."""
        return {name for name, _ in self.named_parameters() if name.endswith('.A_log')}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps, see :class:`SequenceBackbone`.

        Raises:
            UserError: If the network is exported to ONNX by torch's function alone.
        """
        if is_exported_to_onnx():
            raise UserError(
                'torch.onnx.export does not know the selective scan (`mmvisattn::selective_scan`) of DefocusMamba; '
                'use `record` and `write_onnx` of mmvisattn.models.export'
            )
        return super().forward(x)
