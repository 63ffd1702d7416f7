"""Layer-wise learning-rate decay for any backbone that knows its own depth."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..errors import UserError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from .backbones import find_backbones

UNDECAYED = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Let the learning rate fall layer by layer from the head to the stem.

    A layer of depth d among n gets ``lr * layer_decay_rate ** (n - 1 - d)``; all outside the backbone gets ``lr``. The
    backbone tells depths by ``get_layer_depth(param_name, prefix)``, wherever in the model it is; student and
    teacher each tell their own. The other options of ``paramwise_cfg`` hold as in mmengine's default constructor
    (``norm_decay_mult``, ``custom_keys``, …), and their factors are multiplied in.

    As in the layer-wise decay of mmdet and mmpretrain, norms, biases and all other vectors have no weight decay, nor
    what a backbone names by ``no_weight_decay()``. ``norm_decay_mult``, ``bias_decay_mult`` and ``flat_decay_mult`` set
    the former, ``custom_keys`` both.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper.
        paramwise_cfg (dict, optional): Options by parameter; ``layer_decay_rate`` (0 to 1) is the one that this class
            adds.

    Raises:
        UserError: If ``layer_decay_rate`` is missing or out of range, or the backbone does not tell its depth.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.layer_decay_rate = (paramwise_cfg or {}).get('layer_decay_rate')
        if self.layer_decay_rate is None or not 0 < self.layer_decay_rate <= 1:
            raise UserError(
                f'`layer_decay_rate` is {self.layer_decay_rate}; set '
                '`optim_wrapper.paramwise_cfg.layer_decay_rate` to a number above 0 and up to 1'
            )
        if optim_wrapper_cfg['optimizer'].get('weight_decay') is not None:
            paramwise_cfg = {**UNDECAYED, **(paramwise_cfg or {})}
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Collect one parameter group for each parameter, then scale learning rates and take weight decay away."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix == '':  # the call for the whole model, after those for its parts
            self._decay(params, module)
            if self.base_wd is not None:
                self._take_weight_decay(params, module)

    def _take_weight_decay(self, params: list[dict], model: nn.Module) -> None:
        undecayed = {
            f'{place}.{name}' if place else name
            for place, backbone in find_backbones(model).items()
            for name in getattr(backbone, 'no_weight_decay', set)()
        }
        names = {param: name for name, param in model.named_parameters()}
        for group in params:
            (param,) = group['params']
            name = names[param]
            if name in undecayed and not any(key in name for key in self.paramwise_cfg.get('custom_keys', {})):
                group['weight_decay'] = 0.0

    def _decay(self, params: list[dict], model: nn.Module) -> None:
        backbones: dict[str, Any] = {
            name: part for name, part in find_backbones(model).items() if hasattr(part, 'get_layer_depth')
        }
        if not backbones:
            kinds = {type(part).__name__ for part in find_backbones(model).values()} or {type(model).__name__}
            raise UserError(
                f'{" and ".join(sorted(kinds))} has no `get_layer_depth`; layer-wise decay works for backbones that '
                'know their depth, such as all of mmvisattn; take the default optimizer wrapper constructor'
            )
        names = {param: name for name, param in model.named_parameters()}
        for place, backbone in backbones.items():
            prefix = f'{place}.' if place else ''
            scales = set()
            for group in params:
                (param,) = group['params']
                name = names[param]
                if not name.startswith(prefix):
                    continue
                depth, num_layers = backbone.get_layer_depth(name, prefix)
                scale = self.layer_decay_rate ** (num_layers - 1 - depth)
                group['lr'] = group.get('lr', self.base_lr) * scale
                scales.add((depth, scale))
            told = ', '.join(f'{d}: ×{s:.3g}' for d, s in sorted(scales)) or 'none, all of it is frozen'
            print_log(f'layer-wise learning rates of {place or type(model).__name__}: {told}', logger='current')
