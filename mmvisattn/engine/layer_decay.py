"""Layer-wise learning-rate decay for any backbone that knows its own depth."""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..errors import UserError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Let the learning rate fall layer by layer from the head to the stem.

    A layer of depth d among n gets ``lr * layer_decay_rate ** (n - 1 - d)``; all outside the backbone gets ``lr``. The
    backbone tells depths by ``get_layer_depth(param_name, prefix)``. The other options of ``paramwise_cfg`` hold as in
    mmengine's default constructor (``norm_decay_mult``, ``custom_keys``, …), and their factors are multiplied in.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options by parameter; ``layer_decay_rate`` (0 to 1) is the one that this class adds.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.layer_decay_rate = (paramwise_cfg or {}).get('layer_decay_rate')
        if self.layer_decay_rate is None or not 0 < self.layer_decay_rate <= 1:
            raise UserError(
                f'`layer_decay_rate` is {self.layer_decay_rate}; set '
                '`optim_wrapper.paramwise_cfg.layer_decay_rate` to a number above 0 and up to 1'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Collect one parameter group for each parameter, then scale their learning rates."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix == '':  # the call for the whole model, after those for its parts
            self._decay(params, module)

    def _decay(self, params: list[dict], model: nn.Module) -> None:
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise UserError(
                f'{type(backbone).__name__} has no `get_layer_depth`; layer-wise decay works for backbones that '
                'know their depth, such as all of mmvisattn; take the default optimizer wrapper constructor'
            )
        names = {param: name for name, param in model.named_parameters()}
        scales = set()
        for group in params:
            (param,) = group['params']
            name = names[param]
            if not name.startswith('backbone.'):
                continue
            depth, num_layers = backbone.get_layer_depth(name, 'backbone.')
            scale = self.layer_decay_rate ** (num_layers - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
            scales.add((depth, scale))
        print_log(
            'layer-wise learning rates: ' + ', '.join(f'{d}: ×{s:.3g}' for d, s in sorted(scales)),
            logger='current',
        )
