"""What guards a run: checkpoints that it can resume from, a work directory of its own, nothing half written."""

import ctypes
import logging
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .cli import ANSWERED, add_hook, process_number
from .compat.checkpoint import check_whole
from .errors import UserError
from .registry import type_name

if sys.platform != 'win32':
    import fcntl

LOCKS: set[int] = set()  # descriptors of the folders that this process has locked
LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process is sent when its parent ends


def make_resumable(cfg: Config) -> None:
    """Have a training write checkpoints that are whole or not there, and resume as if it had never stopped."""
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    if checkpoint and checkpoint.get('type') in ('CheckpointHook', CheckpointHook):
        checkpoint['type'] = 'mmvisattn.DurableCheckpointHook'
    add_hook(cfg, 'ResumeHook')


def latest_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a work directory; those that are newer and damaged are named.

    Args:
        folder (str | Path): The work directory.

    Returns:
        str | None: Its path, or None where there is no checkpoint.

    Raises:
        UserError: If there are checkpoints and none is whole.
    """
    pointer = Path(folder, 'last_checkpoint')
    named = [Path(pointer.read_text().strip())] if pointer.is_file() else []
    found = {path for kind in ('epoch', 'iter') for path in Path(folder).glob(f'{kind}_*.pth')}
    # The folder may be a copy of another, which the pointer still names.
    found |= {path for path in named if path.is_file() and not Path(folder, path.name).exists()}
    damaged: list[str] = []
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, len(path.name), path.name), reverse=True):
        try:
            check_whole(path, legacy=False)
        except pickle.UnpicklingError as error:
            damaged.append(f'{path}: {error}')
        else:
            if damaged:
                print_log(
                    f'{path} is taken, the newest checkpoint that is whole; not so {"; ".join(damaged)}',
                    logger='current',
                    level=logging.WARNING,
                )
            return str(path)
    if damaged:
        raise UserError(
            f'--resume: no checkpoint in {str(folder)!r} is whole: {"; ".join(damaged)}; move them away to start anew'
        )
    return None


@contextmanager
def sole_run(work_dir: str) -> Iterator[None]:
    """Make the work directory and keep it for this training as long as it runs, or say why that cannot be.

    Args:
        work_dir (str): The work directory.

    Raises:
        UserError: If it cannot be written to, or another training does.
    """
    if process_number():
        yield  # the first process of the run has it
        return
    folder, lock = Path(work_dir), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f'work directory {work_dir!r} cannot be written to: {error.strerror or error}; set --work-dir to another'
        ) from error
    try:
        lock = _lock(folder)
        yield
    finally:
        if lock is not None:
            LOCKS.remove(lock)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder, which the system undoes however the process ends; None where that is not to be had."""
    if sys.platform == 'win32':
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise UserError(
                f'another training writes to {str(folder)!r}: wait for its end, or set --work-dir to another folder'
            ) from None
        return None  # a file system without locks
    LOCKS.add(descriptor)
    return descriptor


def _belong_to_the_run() -> None:
    """In a forked process, such as a data loader's worker: leave the locks to the training, and end with it.

    Where a training is killed, torch has a worker wait for ever until somebody reads the batches that it has ready.
    """
    if LOCKS and LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    while LOCKS:
        os.close(LOCKS.pop())


if sys.platform != 'win32':
    os.register_at_fork(after_in_child=_belong_to_the_run)


def build_runner(cfg: Config) -> Runner:
    """Build the runner; without a GPU, a distributed one uses gloo."""
    distributed_on_cpu = cfg.launcher != 'none' and get_device() == 'cpu'
    if distributed_on_cpu:
        _distribute_on_cpu(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if distributed_on_cpu:
        runner.logger.info('no GPU: the processes run on the CPU over gloo, with BN instead of SyncBN')
    return runner


def _distribute_on_cpu(cfg: Config) -> None:
    """Set up processes on the CPU, which mmengine's own set-up does not foresee."""
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    if not is_distributed():
        # It sets a CUDA device in each process without asking for one.
        with patch.object(torch.cuda, 'set_device', lambda device: None):
            init_dist(cfg.launcher, **cfg.env_cfg.dist_cfg)
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
    if type_name(cfg.get('strategy', {}).get('type')) == 'FSDPStrategy':  # which else takes a GPU
        cfg.strategy.model_wrapper = {'device_id': 'cpu', **(cfg.strategy.get('model_wrapper') or {})}
    cfg.sync_bn = None
    _replace_sync_bn(cfg.model)


def _replace_sync_bn(node: object) -> None:
    """Set ``type='BN'`` wherever a config says SyncBN, by mmcv's name, torch's or the class."""
    if isinstance(node, dict):
        if type_name(node.get('type')) in ('SyncBN', 'SyncBatchNorm'):
            node['type'] = 'BN'
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            _replace_sync_bn(child)


@contextmanager
def no_half_written(*folders: str | None) -> Iterator[None]:
    """Remove what a run wrote if an error of the user's ends it before the first checkpoint.

    Args:
        folders (str | None): Where the run writes to. Of one that was there before, it removes mmengine's log folders
            alone.
    """
    roots = [Path(folder) for folder in folders if folder]
    before = {path for root in roots for path in root.glob('*')}
    absent = {path for root in roots for path in (root, *root.parents) if not path.exists()}
    try:
        yield
    except ANSWERED:
        new = {path for root in roots for path in root.glob('*')} - before
        if not any(path.suffix == '.pth' for path in new):
            # Every process does it: the launcher ends them all with the first that fails.
            for path in new:
                if path.parent in absent or re.fullmatch(r'\d{8}_\d{6}|vis_data', path.name):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            for path in sorted(absent, key=lambda path: len(path.parts), reverse=True):
                with suppress(OSError):  # not made after all
                    path.rmdir()
        raise
