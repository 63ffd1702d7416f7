"""Commands of Python that begin in a process which has imported the toolboxes.

To import torch and the toolboxes takes six seconds, longer than most commands of the tests work. Here a server does so
once and forks for each command, which then has arguments, folder, environment, outputs and exit status of its own.
What a library reads while it is loaded, such as ``OMP_NUM_THREADS``, is the server's; tests of that, and some of each
tool, start a fresh Python.
"""

import contextlib
import gc
import multiprocessing
import os
import random
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import IO
from unittest import mock

import numpy as np
import torch

from tests import mmengine_once  # noqa: F401
from tools.demo import KEEP_MEMORY

ROOT = Path(__file__).parents[1]
SERVER_ENVIRONMENT = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', **KEEP_MEMORY}
STARTING = threading.Lock()
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['mmvisattn.cli', 'mmdet.registry', 'mmdet.apis', 'mmseg.apis', __name__])


class Popen:
    """A command, with as much of ``subprocess.Popen`` as the tests and the driver of the tools need."""

    def __init__(self, args: list[str], cwd: Path, env: dict[str, str], stdout: IO | None, stderr: IO | None) -> None:
        with STARTING, mock.patch.dict(os.environ, SERVER_ENVIRONMENT):
            forkserver.ensure_running()
        outputs = [output and output.name for output in (stdout, stderr)]
        self.process = CONTEXT.Process(target=_become, args=(args[1:], str(cwd), env, *outputs))
        self.process.start()

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once the command has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.process.exitcode


def run(args: list[str], cwd: Path, env: dict[str, str], timeout: float) -> subprocess.CompletedProcess:
    """Run Python with arguments; whatever ends the waiting early, such as pytest's limit of time, ends the command."""
    (done,) = run_together(args, cwd, [env], timeout)
    return done


def run_together(
    args: list[str], cwd: Path, envs: list[dict[str, str]], timeout: float
) -> list[subprocess.CompletedProcess]:
    """Run Python with arguments in each environment, all at the same time."""
    wait_for_a_new_second(args, cwd)
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.NamedTemporaryFile('w+')) for _ in range(2)] for _ in envs]
        commands = []
        try:
            for env, outputs in zip(envs, files):
                commands.append(Popen([sys.executable, *args], cwd, env, *outputs))
            statuses = [command.wait(timeout) for command in commands]
        except BaseException:
            for command in commands:
                command.process.kill()
            raise
        return [
            subprocess.CompletedProcess(args, status, output.read(), error.read())
            for status, (output, error) in zip(statuses, files)
        ]


def wait_for_a_new_second(args: list[str], cwd: Path) -> None:
    """Let none of the runs of a work directory begin within the second of another: mmengine has one log for both."""
    if '--work-dir' in args:
        work_dir = cwd / args[args.index('--work-dir') + 1]
        while (work_dir / time.strftime('%Y%m%d_%H%M%S')).exists():
            time.sleep(0.05)


def _become(words: list[str], cwd: str, env: dict[str, str], output: str | None, error: str | None) -> None:
    """What Python does with the words of its command line."""
    for path, stream in ((output, sys.stdout), (error, sys.stderr)):
        if path:
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
    multiprocessing.set_start_method(None, force=True)  # its own processes start as those of any command
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    gc.freeze()  # what is imported is not garbage, in no collection of the command
    random.seed(), np.random.seed(), torch.seed()
    if words[0] == '-m':
        sys.path[0], sys.argv = cwd, words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(words[0]).resolve().parent), words
        runpy.run_path(words[0], run_name='__main__')
