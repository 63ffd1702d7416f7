"""Checkpoints that are whole or not there."""

import os
from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..errors import UserError
from ..registry import HOOKS

BACKEND = 'mmvisattn_durable'


@register_backend(BACKEND)
class DurableBackend(LocalBackend):
    """Local files that are written aside, flushed to the disk and renamed: whole or not there, whenever the end comes.

    Raises:
        UserError: If a file cannot be written, such as where the disk is full; what was there before is there still.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj (bytes): What it holds.
            filepath (str | Path): Where it is to be.
        """
        target = Path(filepath)
        aside = target.with_name(f'{target.name}.part')
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with aside.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
            if hasattr(os, 'O_DIRECTORY'):  # the name itself reaches the disk with the folder
                folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise UserError(
                f'checkpoint {str(target)!r} of {len(obj) / 2**20:.1f} MiB cannot be written: '
                f'{error.strerror or error}; make room, or set `--work-dir` or `default_hooks.checkpoint.out_dir` to '
                'another folder, and go on from the checkpoint before with `--resume`'
            ) from error


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, writing by way of :class:`DurableBackend` where checkpoints are local files.

    With ``max_keep_ckpts`` the oldest checkpoint goes when the newest is there, not before. All processes call
    ``before_checkpoint`` of the hooks, so that :class:`ResumeHook` can collect their random states.
    Its arguments are those of ``CheckpointHook``.
    """

    backend_args: dict | None
    keep_ckpt_ids: deque
    max_keep_ckpts: int

    def before_train(self, runner: Runner) -> None:
        """Choose how files are written."""
        super().before_train(runner)
        if self.backend_args is None and self.file_client_args is None and type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=BACKEND)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        runner.call_hook('before_checkpoint')
        most = self.max_keep_ckpts
        if most > 0:  # room for one more, until it is written
            self.max_keep_ckpts = most + 1
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids, most + 1)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = most
        while most > 0 and len(self.keep_ckpt_ids) > most:
            oldest = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            if is_main_process() and self.file_backend.isfile(oldest):
                self.file_backend.remove(oldest)
