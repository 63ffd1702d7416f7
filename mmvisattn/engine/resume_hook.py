"""Resume a training as if it had never stopped."""

from functools import partial
from typing import Any, cast

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from ..registry import HOOKS
from .data_position import (
    STATES,
    AdvancedBatches,
    Skipped,
    StateNotingCollate,
    WorkerContinuation,
    advance,
    rebuild,
    reseed,
)
from .random_states import get_random_states, set_random_states
from .resume_schedule import follow_config, tell

KEY = 'mmvisattn_resume'  # of a checkpoint


@HOOKS.register_module()
class ResumeHook(Hook):
    """Go on after ``--resume`` as if the training had never stopped: the same weights, to the bit on a CPU.

    mmengine restores weights, optimizer and schedulers. This hook adds what it leaves out:

    - the random states of Python, numpy and torch, of each process and of each worker of the data loader, which are
      saved in the checkpoint;
    - the place in the data, at which the data loader goes on at once (mmengine reads all batches again up to there, or,
      going by epoch, begins the epoch anew), also where no seed is set;
    - gradients that are being accumulated (one process);
    - a validation that is due at the checkpoint: nothing in the file tells that it was finished, so it is done again;
    - where the config has other learning rates, schedules, batch sizes or numbers of processes than the checkpoint, the
      config's are taken, and the log says so (:func:`follow_config`). mmengine takes the checkpoint's.

    Validation leaves the random numbers of training as they were. With several processes their states are saved
    where :class:`DurableCheckpointHook` writes the checkpoints. What transforms keep for themselves (the caches of
    ``CachedMosaic`` and ``CachedMixUp``) is not saved. Going by epoch with checkpoints amid an epoch and persistent
    workers, the interval has to be a multiple of ``num_workers``.
    """

    priority = 'LOWEST'  # the random states are set when no other hook draws any more

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None  # what the checkpoint to resume from has, until it is taken
        self.batch = 0  # batches of this epoch that are done
        self.workers: dict[int, dict] = {}  # random states by number
        self.next_worker = 0
        self.before_validation: dict[str, Any] | None = None
        self.of_all_processes: list[dict] | None = None
        self.init_worker: Any = None

    # Saving

    def before_checkpoint(self, runner: Runner) -> None:
        """Collect what each process has to add; :class:`DurableCheckpointHook` calls it in all of them."""
        self.of_all_processes = all_gather_object(self._own_states()) if is_distributed() else None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the states and the position."""
        loader = runner.train_dataloader
        checkpoint[KEY] = {
            'processes': self.of_all_processes or [self._own_states()],
            'world_size': get_world_size(),
            'num_workers': loader.num_workers,
            'batch_size': _batch_size(loader),
            'epoch': runner.epoch,
            'batch': self.batch,
            'iter': runner.iter,
            'gradients': {} if is_distributed() else _gradients(runner.model),
        }
        self.of_all_processes = None

    def _own_states(self) -> dict[str, Any]:
        own = self.before_validation or get_random_states()
        return {'own': own, 'workers': dict(self.workers), 'next_worker': self.next_worker}

    # Resuming

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take what the checkpoint has, and let the config have its way where the two differ."""
        if not runner._resume:
            return
        saved = checkpoint.get(KEY)
        if saved is None:
            tell('the checkpoint has no random states (another tool wrote it): training goes on with new ones')
            saved = {}
        self.resumed = {**saved, 'at_epoch_start': saved.get('epoch') != checkpoint['meta']['epoch']}
        self._follow_batches(runner, checkpoint)
        follow_config(runner, checkpoint)

    def _follow_batches(self, runner: Runner, checkpoint: dict) -> None:
        """Where an epoch has another number of batches than in the checkpoint, count iterations in the new ones."""
        saved, loader, meta = self.resumed or {}, runner.train_dataloader, checkpoint['meta']
        if 'batch_size' not in saved:
            return
        for name, then, now in (
            ('batch size', saved['batch_size'], _batch_size(loader)),
            ('number of processes', saved['world_size'], get_world_size()),
        ):
            if then != now:
                tell(
                    f'resumed with another {name}: {then} then, {now} now; the learning rate is that of the config '
                    '(--auto-scale-lr scales it by the batch size), and the random numbers are others than they would '
                    'have been'
                )
        then, now = saved['batch_size'] * saved['world_size'], _batch_size(loader) * get_world_size()
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            if not saved['at_epoch_start']:
                saved['batch'] = saved['batch'] * then // now
            done = meta['epoch'] * len(loader) + (0 if saved['at_epoch_start'] else saved['batch'])
            if done != meta['iter']:
                tell(f'an epoch has {len(loader)} batches now: iteration {meta["iter"]} then is {done} now')
                meta['iter'] = done
        else:
            saved['steps'] = meta['iter'] * then // now

    def before_train(self, runner: Runner) -> None:
        """Take up gradients, random states and a validation that may be missing."""
        saved = self.resumed
        if not saved:
            return
        parameters = dict(_unwrapped(runner.model).named_parameters())
        for name, gradient in saved.get('gradients', {}).items():
            parameters[name].grad = gradient.to(parameters[name].device)
        states = saved.get('processes', [])
        saved['states'] = states[get_rank()] if len(states) == get_world_size() else {}
        if not saved['states'] and saved.get('world_size') == get_world_size():
            tell('the checkpoint has the random states of one process alone: the others go on with new ones')
        if own := saved['states'].get('own'):
            set_random_states(own)
        if saved.get('num_workers') == runner.train_dataloader.num_workers:
            self.workers = saved['states'].get('workers', {})
            self.next_worker = saved['states'].get('next_worker', 0)
        elif 'num_workers' in saved:
            tell(
                f'resumed with another number of workers: {saved["num_workers"]} then, '
                f'{runner.train_dataloader.num_workers} now; their random numbers are others than they would have been'
            )
        if _validation_is_due(runner, saved):
            print_log('validation is done again, as nothing tells whether it was finished', logger='current')
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Have the workers tell their random states; after resuming, go on at the place in the data."""
        saved, self.resumed = self.resumed, None
        self.batch = 0
        loader = runner.train_dataloader
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.next_worker = 0 if saved is None else self.next_worker
            if saved is None and not loader.persistent_workers:
                self.workers = {}
        if saved is not None:
            self._go_on(runner, saved)
        elif self.init_worker is None:
            self._begin(runner)

    def _begin(self, runner: Runner) -> None:
        loop, loader = runner.train_loop, runner.train_dataloader
        self.init_worker = loader.worker_init_fn
        if not loader.num_workers:
            return
        if isinstance(loop, EpochBasedTrainLoop):
            loader.collate_fn = StateNotingCollate(loader.collate_fn)
        elif batches := _new_batches(runner):  # its workers run already
            states = get_random_states()
            loop.dataloader = rebuild(loader, batches, collate_fn=StateNotingCollate(loader.collate_fn))
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
            set_random_states(states)

    def _go_on(self, runner: Runner, saved: dict[str, Any]) -> None:
        loop, loader = runner.train_loop, runner.train_dataloader
        own = saved['states'].get('own') or get_random_states()
        batches = _new_batches(runner)
        self.init_worker = reseed(loader.worker_init_fn, runner.seed)
        if batches is None:
            tell('the data loader is an object and not a config: the place in the data cannot be restored')
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if by_epoch:
            steps = self.batch = 0 if saved['at_epoch_start'] else saved['batch']
            if hasattr(batches.sampler, 'set_epoch'):
                batches.sampler.set_epoch(runner.epoch)
        else:
            steps = saved.get('steps', runner.iter)
        rest, passes, at_end = advance(batches, steps)
        at_start = by_epoch and not steps or at_end
        lasting = loader.persistent_workers and loader.num_workers > 0
        # What begins an epoch draws random numbers, and so it did when the epoch was begun: before the states were
        # noted if the checkpoint lies amid the epoch or the workers were there already, else after.
        drawn = not by_epoch or steps or lasting
        loop.dataloader = rebuild(
            loader,
            AdvancedBatches(batches, rest, partial(set_random_states, own) if drawn else None),
            collate_fn=StateNotingCollate(loader.collate_fn),
            worker_init_fn=self._continue_workers(loader.num_workers, at_start, lasting),
        )
        if not by_epoch:
            iterator = type(loop.dataloader_iterator)(loop.dataloader)
            iterator._epoch = passes
            told_not_to_skip = getattr(loop, 'fast_forward_on_resume', False)
            loop.dataloader_iterator = iterator if told_not_to_skip else Skipped(iterator, runner.iter)
        set_random_states(own)

    def _continue_workers(self, num_workers: int, at_start: bool, lasting: bool) -> Any:
        """What starts the workers; at the start of a pass number 0 is first, and only workers that last go on."""
        first = 0 if at_start else self.next_worker
        self.next_worker = 0
        if at_start and not lasting:
            self.workers = {}
        if not self.workers:
            return self.init_worker
        continuation = WorkerContinuation(self.init_worker, self.workers, first, num_workers)
        self.workers = {(number - first) % num_workers: states for number, states in self.workers.items()}
        return continuation

    # Under way

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Count the batch, and take the worker's states out of it."""
        loader = runner.train_dataloader
        self.batch += 1
        if isinstance(loader.worker_init_fn, WorkerContinuation):
            loader.worker_init_fn = self.init_worker  # workers that are started later begin anew
        if isinstance(data_batch, dict) and STATES in data_batch:
            worker, states = data_batch.pop(STATES)
            self.workers[worker] = states
            self.next_worker = (worker + 1) % loader.num_workers

    def before_val(self, runner: Runner) -> None:
        """Note the random states."""
        self.before_validation = get_random_states()
        if isinstance(runner._train_loop, EpochBasedTrainLoop):
            self.batch = 0  # the epoch is over

    def after_val(self, runner: Runner) -> None:
        """Go on with the random numbers as if there had been no validation."""
        if self.before_validation:
            set_random_states(self.before_validation)
        self.before_validation = None


def _unwrapped(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients that wait for more: after an optimizer's step there are none."""
    parameters = _unwrapped(model).named_parameters()
    return {name: parameter.grad.cpu() for name, parameter in parameters if parameter.grad is not None}


def _batch_size(loader: DataLoader) -> int:
    return getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size or 1


def _new_batches(runner: Runner) -> Any:
    """The batch sampler of the config, at its beginning; None where there is no config."""
    cfg, loader = runner._train_dataloader, runner.train_dataloader
    if not isinstance(cfg, dict):
        return None
    seed = None if runner._randomness_cfg.get('diff_rank_seed') else runner.seed
    sampler = DATA_SAMPLERS.build(cfg['sampler'], default_args=dict(dataset=loader.dataset, seed=seed))
    if cfg.get('batch_sampler') is None:
        return BatchSampler(sampler, cfg['batch_size'], cfg.get('drop_last', False))
    defaults = dict(sampler=sampler, batch_size=cfg['batch_size'])
    return DATA_SAMPLERS.build(cfg['batch_sampler'], default_args=defaults)


def _validation_is_due(runner: Runner, saved: dict[str, Any]) -> bool:
    """What mmengine's loops ask after each epoch or iteration."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if by_epoch and not saved['at_epoch_start']:
        return False
    loop._decide_current_val_interval()
    done, total = (runner.epoch, runner.max_epochs) if by_epoch else (runner.iter, runner.max_iters)
    return done >= max(loop.val_begin, 1) and (done % loop.val_interval == 0 or done == total)
