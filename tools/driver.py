"""Trainings and tests of the demo and the studies: each is a process, is kept when finished, and goes on if stopped."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from mmvisattn.runs import latest_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# What mmseg's IoUMetric tells per cent; mmdet tells shares of one.
PER_CENT = {'aAcc', 'mIoU', 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall'}


def run_script(
    *words: str | Path, log: Path | None = None, watch: Callable[[str], None] | None = None, **env: str
) -> None:
    """Run a script of this repository, and print it first.

    Args:
        *words (str | Path): The script and its arguments.
        log (Path, optional): File that its output is added to, instead of being shown.
        watch (Callable[[str], None], optional): Is given what comes in at the log, twice a second; the command is then
            written there as well, instead of being printed.
        **env (str): Variables of its environment.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    command = [sys.executable, *map(str, words)]
    shown = f'\n$ python {shlex.join(command[1:])}'
    if not watch:
        print(shown, flush=True)
    with log.open('a') if log else nullcontext() as output, log.open() if watch else nullcontext() as new:
        if watch:
            print(shown, file=output, flush=True)
            new.seek(0, os.SEEK_END)
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=output, stderr=output)
        status = None
        try:
            while watch and status is None:
                time.sleep(0.5)
                status = process.poll()
                watch(new.read())
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reaches it too; it has the word first
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def as_share(name: str, value: float) -> float:
    """A metric as a share of one, whichever toolbox measured it."""
    return value / 100 if name in PER_CENT else value


@dataclass(frozen=True)
class Training:
    """A training.

    Args:
        name (str): What to call it.
        config (str): Config file.
        options (list[str]): ``--cfg-options``.
        folder (Path): Folder for logs and checkpoints.
        metrics (dict[str, str]): Keys of the results to keep, and what they are called in a table.
        start (Training, optional): The training from whose weights it starts, or None.
        processes (int): On how many processes it is spread.
    """

    name: str
    config: str
    options: list[str]
    folder: Path
    metrics: dict[str, str] = field(default_factory=dict)
    start: 'Training | None' = None
    processes: int = 1

    @property
    def checkpoint(self) -> str | None:
        """The newest whole checkpoint that it wrote, or None where there is none.

        Raises:
            UserError: If there are checkpoints and none is whole.
        """
        return latest_checkpoint(self.folder)

    @property
    def result_file(self) -> Path:
        """Where the figures stand; without it, the training is not finished."""
        return self.folder / 'result.json'

    @property
    def figures(self) -> dict[str, float]:
        """What came out, metrics and minutes."""
        return json.loads(self.result_file.read_text())

    @property
    def shares(self) -> Iterator[tuple[str, float]]:
        """What each metric is called, and its value as a share of one; those alone that the network has."""
        figures = self.figures
        return ((label, as_share(key, figures[key])) for key, label in self.metrics.items() if key in figures)

    def command(self) -> list[str]:
        """The script and its arguments."""
        words = ['tools/train.py', self.config, '--work-dir', str(self.folder)]
        if self.processes > 1:
            launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={self.processes}']
            words = [*launcher, *words, '--launcher', 'pytorch']
        options = list(self.options)
        if self.checkpoint:
            words.append('--resume')  # beside which mmengine takes ``load_from`` for the checkpoint to resume
        elif self.start:
            options.append(f'load_from={self.start.checkpoint}')
        return [*words, '--cfg-options', *options]

    def run(self, log: Path | None = None, watch: Callable[[str], None] | None = None, **env: str) -> None:
        """Do it and write down the figures, unless an earlier run did; the arguments are those of :func:`run_script`.

        Raises:
            subprocess.CalledProcessError: If it fails.
        """
        if self.result_file.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        run_script(*self.command(), log=log, watch=watch, **env)
        minutes = (time.monotonic() - start) / 60
        self.result_file.write_text(json.dumps({'minutes': minutes, **(self.read_figures() if self.metrics else {})}))

    def read_figures(self) -> dict[str, float]:
        """The figures of the newest validation in the logs."""
        key = next(iter(self.metrics))
        newest = sorted(self.folder.glob('*/vis_data/scalars.json'))[-1]
        lines = [json.loads(line) for line in newest.read_text().splitlines()]
        return next(line for line in reversed(lines) if key in line)


@dataclass(frozen=True)
class Test(Training):
    """A test of what a training, ``start``, has made.

    Args:
        pictures (Path, optional): Folder for pictures of prediction beside truth, or None.
    """

    pictures: Path | None = None

    def command(self) -> list[str]:
        """The script and its arguments."""
        words = ['tools/test.py', self.config, self.start.checkpoint, '--work-dir', str(self.folder)]
        show = ['--show-dir', str(self.pictures)] if self.pictures else []
        return [*words, *show, '--cfg-options', *self.options]

    def read_figures(self) -> dict[str, float]:
        """The figures of the newest test."""
        return json.loads(sorted(self.folder.glob('[0-9]*/[0-9]*.json'))[-1].read_text())
