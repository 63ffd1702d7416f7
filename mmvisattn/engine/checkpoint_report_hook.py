"""Say what a checkpoint fills when the runner loads, tests or resumes from it."""

from typing import cast

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..checkpoint.loading import compare, filter_weights, log_report, weights_of
from ..errors import UserError
from ..registry import HOOKS


def report_checkpoint(model: nn.Module, checkpoint: dict) -> None:
    """Report what a checkpoint of a whole detector or segmentor will fill, just before mmengine loads it.

    Weights under ``model`` or at the top of the file, as some authors keep them, are put under ``state_dict``, where
    mmengine looks for them, and what authors call or shape otherwise in parts of our networks is made ours.

    Args:
        model (nn.Module): The model, also inside a wrapper for several processes or for test-time augmentation.
        checkpoint (dict): What the file held; changed in place.

    Raises:
        UserError: If no key of the file fits the model.
    """
    sharded = isinstance(model, FullyShardedDataParallel)
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    given = weights_of(checkpoint)
    weights = filter_weights(model, given)
    expected = model.state_dict()
    if sharded:  # a process has a part of each, so that names alone can be compared
        names = [name.replace('_fsdp_wrapped_module.', '') for name in expected]
        expected = {name: weights.get(name, torch.empty(0)) for name in names}
    report = compare(expected, weights)
    source = f'weights of {type(model).__name__} from the checkpoint'
    if not report.loaded:
        raise UserError(
            f'{source}: not one of its {len(given)} keys fits the model; it has names such as '
            f'{list(given)[:3]}, the model such as {list(expected)[:3]}; give a checkpoint of this config'
        )
    log_report(report, source)
    kept = checkpoint.get('state_dict', {})  # with the versions of its modules, so left alone where it fits as it is
    if weights.keys() != kept.keys() or any(weights[key] is not value for key, value in kept.items()):
        checkpoint['state_dict'] = weights


@HOOKS.register_module()
class CheckpointReportHook(Hook):
    """Report what a checkpoint fills whenever the runner loads one; refuse one that fills nothing.

    Without it mmengine only warns when not a single key fits, and a test goes on with random weights. It comes before
    all other hooks, so that those that read weights (``EMAHook``) find them under ``state_dict``.

    Raises:
        UserError: As :func:`report_checkpoint`, or if training is to go on from a file that holds weights alone.
    """

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See :func:`report_checkpoint`."""
        meta = checkpoint.get('meta') or {}
        if runner._resume and not ('epoch' in meta and 'iter' in meta and 'message_hub' in checkpoint):
            raise UserError(
                'the checkpoint to resume from does not say how far its training had come; give one that mmengine '
                'wrote, or set `load_from` without `--resume` to start anew from its weights'
            )
        report_checkpoint(runner.model, checkpoint)
