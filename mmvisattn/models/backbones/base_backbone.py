"""The constructor contract that every backbone of this package keeps."""

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from timm.layers import calculate_drop_path_rates
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...checkpoint import load_pretrained
from ...errors import UserError, nearest
from ...registry import type_name
from ..checks import check_numbers
from ..layers import checkpointing


class BaseBackbone(BaseModule, metaclass=ABCMeta):
    """What the backbones share: settings by name, freezing, loud loading of weights, checks of the input.

    A subclass has a table ``arch_settings``, gives the modules that a frozen stage comprises in
    :meth:`stage_modules`, and tells its own depth to the layer-decay optimizer in :meth:`get_layer_depth`.

    Args:
        frozen_stages (int): Number of the last frozen stage, counted from 1; 0 freezes the stem alone, -1 nothing.
        norm_eval (bool): Keep BatchNorm in evaluation mode (fixed running statistics) while training.
        in_channels (int): Number of channels of the image.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. ``dict(type='Pretrained',
            checkpoint=...)`` takes the authors' files as they are, see :func:`mmvisattn.checkpoint.load_pretrained`.
    """

    # Sizes of each named architecture, and defaults of arguments that go with it.
    arch_settings: dict[str, dict] = {}
    # The arguments among these: a dict of sizes may leave them out, and then has those of the first architecture.
    arch_arguments: tuple[str, ...] = ()
    # The first weight that meets the image, (C, in_channels, side, side).
    patch_weight = 'patch_embed.proj.weight'
    # Of other convolutions that see the image.
    other_image_weights: tuple[str, ...] = ()
    # What heights and widths are to be multiples of in an exported graph that leaves them open.
    size_step: int = 1
    init_cfg: dict | list[dict] | None

    def __init__(
        self,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_numbers(type(self).__name__, in_channels=in_channels)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.in_channels = in_channels

    @classmethod
    def parse_arch(cls, arch: str | dict) -> dict:
        """The settings of a named architecture, or a dict checked to hold the same keys; a copy.

        Raises:
            UserError: If the name is unknown, or the dict misses a size or has a key too many.
        """
        name = cls.__name__
        if isinstance(arch, str):
            if arch not in cls.arch_settings:
                raise UserError(
                    f'{name} has no arch {arch!r}{nearest(arch, cls.arch_settings)}; set `arch` to one of '
                    f'{sorted(cls.arch_settings)} or to a dict of sizes'
                )
            return dict(cls.arch_settings[arch])
        first = next(iter(cls.arch_settings.values()))
        defaults = {key: first[key] for key in cls.arch_arguments}
        sizes, given = set(first) - set(defaults), set(arch)
        if not sizes <= given <= set(first):
            raise UserError(
                f'{name}: an `arch` dict has the keys {sorted(sizes)}; missing {sorted(sizes - given)}, '
                f'unknown {sorted(given - set(first))}'
            )
        return {**defaults, **arch}

    @classmethod
    def check_out_indices(cls, out_indices: Sequence[int], num_outputs: int) -> tuple[int, ...]:
        """``out_indices`` as a rising tuple of non-negative stage numbers.

        Raises:
            UserError: If an index is out of range or given twice.
        """
        given = tuple(out_indices) if isinstance(out_indices, Iterable) else (out_indices,)
        whole = all(isinstance(i, int) for i in given)
        indices = tuple(i + num_outputs if i < 0 else i for i in given) if whole else ()
        if not indices or any(not 0 <= i < num_outputs for i in indices) or sorted(set(indices)) != list(indices):
            raise UserError(
                f'{cls.__name__}: `out_indices` is {given}; it must be a rising sequence of numbers from 0 to '
                f'{num_outputs - 1}, the numbers of the outputs'
            )
        return indices

    @classmethod
    def check_frozen_stages(cls, frozen_stages: int, num_stages: int) -> int:
        """``frozen_stages`` where it lies in range.

        Raises:
            UserError: If it does not.
        """
        check_numbers(cls.__name__, frozen_stages=frozen_stages)
        if not -1 <= frozen_stages <= num_stages:
            raise UserError(
                f'{cls.__name__}: `frozen_stages` is {frozen_stages}; it must be -1 (nothing), 0 (the stem) or up to '
                f'{num_stages}, the number of stages'
            )
        return frozen_stages

    def check_input(self, x: Tensor, min_size: int) -> None:
        """Refuse what is not a batch of images with ``in_channels`` channels and at least ``min_size`` pixels a side.

        Raises:
            UserError: If the shape is not (B, in_channels, H, W), or the image is too small.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise UserError(
                f'{type(self).__name__} takes images of shape (B, {self.in_channels}, H, W); it was given '
                f'{tuple(x.shape)}; set `in_channels` to the channels of the images'
            )
        if min(x.shape[-2:]) < min_size:
            raise UserError(
                f'{type(self).__name__} was given an image of {x.shape[-2]}×{x.shape[-1]} pixels (H×W), smaller than '
                f'its stride allows: it needs {min_size} a side; enlarge it in the data pipeline (`Resize`) or pad it '
                '(`pad_size_divisor` of the data preprocessor)'
            )

    @abstractmethod
    def stage_modules(self, stage: int) -> Sequence[nn.Module | nn.Parameter]:
        """The parts that freezing ``stage`` fixes; stage 0 is the stem."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, other than norms, biases and vectors, that weight decay does not fit."""
        return set()

    @abstractmethod
    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning-rate decay.

        Args:
            param_name (str): Full name of the parameter.
            prefix (str): What stands before the backbone's own names, such as ``'backbone.'``.

        Returns:
            tuple[int, int]: The layer's depth from 0, and the number of layers.
        """

    def checkpoint_filter(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Foreign names and shapes made our own, just before weights are loaded.

        Here: weights for RGB fitted to ``in_channels`` as timm fits them, by repeating and rescaling, or by their sum
        for one channel.

        Raises:
            UserError: If the weights are for another number of channels.
        """
        fitted = dict(state_dict)
        for key in (self.patch_weight, *self.other_image_weights):
            weight = state_dict.get(key)
            if weight is None or weight.dim() != 4 or weight.shape[1] == self.in_channels:
                continue
            name, given = type(self).__name__, weight.shape[1]
            if given != 3:
                raise UserError(
                    f'the checkpoint is for images of {given} channels and {name} for {self.in_channels}; set '
                    f'`in_channels={given}`, or load weights for RGB, which are fitted'
                )
            print_log(f'{name}: {key}: {given} input channels fitted to {self.in_channels}', logger='current')
            fitted[key] = adapt_input_conv(self.in_channels, weight)
        return fitted

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; ``Pretrained`` goes through our own, loud loading."""
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        pretrained = [cfg for cfg in configs if type_name(cfg.get('type')) in ('Pretrained', 'PretrainedInit')]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        init_cfg = self.init_cfg
        self.init_cfg = [cfg for cfg in configs if cfg and cfg not in pretrained]
        super().init_weights()
        self.init_cfg = init_cfg
        for cfg in pretrained:
            load_pretrained(self, cfg['checkpoint'], prefix=cfg.get('prefix'))
            if hasattr(self, '_params_init_info'):
                update_init_info(self, init_info=f'PretrainedInit: load from {cfg["checkpoint"]}')

    def _freeze_stages(self) -> None:
        for stage in range(self.frozen_stages + 1):
            for part in self.stage_modules(stage):
                part.requires_grad_(False)
                if isinstance(part, nn.Module):
                    part.eval()

    def train(self, mode: bool = True) -> 'BaseBackbone':
        """Set the mode; frozen stages, and BatchNorm under ``norm_eval``, stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Drop path rates of ``depth`` blocks, which rise linearly from 0 to ``rate``."""
    return cast(list[float], calculate_drop_path_rates(rate, depth))


def run_blocks(blocks: Iterable[Callable[[Tensor], Tensor]], x: Tensor, with_cp: bool) -> Tensor:
    """Apply blocks in turn; ``with_cp`` trades memory for computing each a second time in the backward."""
    for block in blocks:
        x = checkpointing.run(block, x, with_cp=with_cp)
    return x
