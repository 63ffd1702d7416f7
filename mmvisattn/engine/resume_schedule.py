"""Resume with another schedule than that of the checkpoint."""

import logging
import warnings
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import UserError

# How far a scheduler has come, beside what it was built with.
PROGRESS = {'last_step', '_global_step', '_last_value', 'verbose'}


def tell(message: str) -> None:
    """Warn in the log of the run."""
    print_log(message, logger='current', level=logging.WARNING)


def follow_config(runner: Runner, checkpoint: dict) -> None:
    """Let the config's learning rates and schedules replace those of a checkpoint that is to be resumed from.

    mmengine restores both from the checkpoint and leaves the config unread: a longer schedule would end where the old
    one did, or rise again after it. Where the two differ, the schedules of the config are stepped to where the
    checkpoint is. Where they do not, the checkpoint stays as it is. A schedule that goes by metrics goes on as saved.

    Args:
        runner (Runner): The runner, whose optimizer and schedulers are new.
        checkpoint (dict): The checkpoint; changed in place.

    Raises:
        UserError: If the optimizers have other groups of parameters.
    """
    optimizer, schedulers = runner.optim_wrapper, runner.param_schedulers or []
    if 'optimizer' not in checkpoint or not isinstance(optimizer, OptimWrapper) or not isinstance(schedulers, list):
        return
    # Of several groups mmengine keeps one more, without parameters, whose learning rate it logs as `base_lr`.
    groups, saved_groups = optimizer.optimizer.param_groups, checkpoint['optimizer']['param_groups']
    sizes = [len(group['params']) for group in groups], [len(group['params']) for group in saved_groups]
    if sizes[0] != sizes[1]:
        raise UserError(
            f'the checkpoint to resume from has {sum(sizes[1])} parameters in {len(sizes[1])} groups, the config '
            f'{sum(sizes[0])} in {len(sizes[0])}: its model, `frozen_stages` or `paramwise_cfg` is another; resume '
            'with the config of the checkpoint, or set `load_from` without `--resume` to start anew from its weights'
        )
    base, saved_base = optimizer.base_param_settings, checkpoint['optimizer'].get('base_param_settings')
    if base and saved_base:
        groups, saved_groups = [*groups, base], [*saved_groups, saved_base]
    saved = checkpoint.get('param_schedulers', [])
    names = {scheduler.param_name for scheduler in schedulers}
    told = [*_follow_groups(groups, saved_groups, names), *_differences(schedulers, saved)]
    if told:
        before = saved_groups[0]['lr']
        _step_to(runner, schedulers, checkpoint['meta'])
        checkpoint['param_schedulers'] = [
            old if getattr(scheduler, 'need_val_args', False) and old else scheduler.state_dict()
            for scheduler, old in zip(schedulers, [*saved, *[None] * len(schedulers)])
        ]
        for group, saved_group in zip(groups, saved_groups):
            saved_group.update({key: value for key, value in group.items() if key != 'params'})
        tell(
            f'resumed with other settings than those of the checkpoint: {"; ".join(told)}; those of the config are '
            f'taken, and the learning rate is {groups[0]["lr"]:.4g} ({before:.4g} in the checkpoint)'
        )
    _tell_if_finished(runner, checkpoint['meta'])


def _follow_groups(groups: list[dict], saved_groups: list[dict], scheduled: set[str]) -> list[str]:
    """What the groups have otherwise, apart from what schedules change."""
    changing = {'params', *scheduled, *(['betas'] if scheduled - {'lr'} else [])}
    told: dict[str, str] = {}
    for group, saved_group in zip(groups, saved_groups):
        for key in group.keys() - changing:
            then, now = saved_group.get(key), group[key]
            if (list(then) if isinstance(then, tuple) else then) != (list(now) if isinstance(now, tuple) else now):
                told.setdefault(key, f'{key} {then} then, {now} now')
    return list(told.values())


def _differences(schedulers: list[_ParamScheduler], saved: list[dict]) -> list[str]:
    """What the schedules have otherwise."""
    if len(schedulers) != len(saved):
        return [f'{len(saved)} schedules then, {len(schedulers)} now']
    told = []
    for scheduler, then in zip(schedulers, saved):
        if getattr(scheduler, 'need_val_args', False):
            continue
        now = scheduler.state_dict()
        if now.keys() != then.keys():
            told.append(f'another kind of schedule then, {type(scheduler).__name__} now')
            continue
        other = [key for key in sorted(now.keys() - PROGRESS) if now[key] != then[key]]
        if 'base_values' in other:
            other.remove('base_values')  # one for each group; the groups tell it
        told += [f'{type(scheduler).__name__}.{key} {then[key]} then, {now[key]} now' for key in other]
    return told


def _step_to(runner: Runner, schedulers: list[_ParamScheduler], meta: dict[str, Any]) -> None:
    """Step new schedulers as often as training would have."""
    steered = [scheduler for scheduler in schedulers if not getattr(scheduler, 'need_val_args', False)]
    by_iter = [scheduler for scheduler in steered if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in steered if scheduler.by_epoch]
    length = len(runner.train_dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # they miss the optimizer's steps
        for step in range(1, meta['iter'] + 1):
            for scheduler in by_iter:
                scheduler.step()
            if length and step % length == 0 and step // length <= meta['epoch']:
                for scheduler in by_epoch:
                    scheduler.step()


def _tell_if_finished(runner: Runner, meta: dict[str, Any]) -> None:
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    unit, done = ('epoch', meta['epoch']) if by_epoch else ('iter', meta['iter'])
    total = runner.max_epochs if by_epoch else runner.max_iters
    if done >= total:
        tell(
            f'the checkpoint to resume from is at {unit} {done} of {total}: nothing is left to train; set '
            f'`train_cfg.max_{unit}s` and the ends of `param_scheduler` higher to train longer'
        )
