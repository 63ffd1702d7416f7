"""Let drop path grow with training."""

from mmcv.cnn.bricks import DropPath as MMCVDropPath
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from timm.layers import DropPath as TimmDropPath
from torch import nn

from ..errors import UserError
from ..registry import HOOKS
from .backbones import find_backbones

DROP_PATHS = (TimmDropPath, MMCVDropPath)


@HOOKS.register_module()
class ScheduledDropPathHook(Hook):
    """Change the drop path rate of the backbone linearly with the progress of training.

    As in `De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_: a large rate is wanted, but not from the
    start. The rate of a layer keeps the share of the highest one that the backbone was built with, so for a backbone
    whose rates rise linearly over ``depth`` layers, layer l has ``linspace(0, r, depth)[l]`` throughout. The rate
    follows from the progress alone, hence is right after resuming. Student and teacher have the same.

    Args:
        start (float): Highest rate of all layers in the first epoch or iteration, 0 to below 1.
        end (float): Highest rate of all layers in the last epoch or iteration, 0 to below 1.
        by_epoch (bool): Change it from epoch to epoch, otherwise from iteration to iteration. Defaults to True.

    Raises:
        UserError: If a rate is out of range, the backbone was built without drop path, or there are no epochs to go by.
    """

    def __init__(self, start: float, end: float, by_epoch: bool = True) -> None:
        if not (0 <= start < 1 and 0 <= end < 1):
            raise UserError(
                f'ScheduledDropPathHook: `start` is {start} and `end` {end}; drop path rates are from 0 to below 1'
            )
        self.start = start
        self.end = end
        self.by_epoch = by_epoch
        self.layers: list[tuple[nn.Module, float]] = []

    def before_train(self, runner: Runner) -> None:
        """Note the share of the highest rate that each layer has."""
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise UserError(
                'ScheduledDropPathHook goes by epoch and training by iteration (`train_cfg`); set `by_epoch=False`'
            )
        if not self.layers:
            self.layers = layer_shares(runner.model)
        self._set_rates(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the rates of an epoch."""
        if self.by_epoch:
            self._set_rates(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the rates of an iteration."""
        if not self.by_epoch:
            self._set_rates(runner)

    def _set_rates(self, runner: Runner) -> None:
        done, total = (runner.epoch, runner.max_epochs) if self.by_epoch else (runner.iter, runner.max_iters)
        progress = min(done / max(total - 1, 1), 1)
        rate = self.start + progress * (self.end - self.start)
        for layer, share in self.layers:
            layer.drop_prob = share * rate
        runner.message_hub.update_scalar('train/drop_path_rate', rate)


def layer_shares(model: nn.Module) -> list[tuple[nn.Module, float]]:
    """The drop path layers of a model's backbones, each with its share of the highest rate in its backbone.

    Raises:
        UserError: If there are none, or all have rate 0.
    """
    shares = []
    backbones = list(find_backbones(model).values()) or [model]
    for backbone in backbones:
        layers = [layer for layer in backbone.modules() if isinstance(layer, DROP_PATHS)]
        highest = max((layer.drop_prob for layer in layers), default=0)
        shares += [(layer, layer.drop_prob / highest) for layer in layers if highest]
    if not shares:
        raise UserError(
            f'ScheduledDropPathHook: {type(backbones[0]).__name__} has no drop path to schedule; set `drop_path_rate` '
            'of the backbone to a value above 0, such as the `end` of the hook'
        )
    return shares
