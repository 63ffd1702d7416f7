"""Processes that are spawned, such as the workers of a data loader on macOS and Windows.

A spawned process begins with an empty Python and unpickles what it works on. A data set of mmdet or mmseg imports
``mmcv.ops`` on the way, so the measures have to be there before.

Python before 3.13.8 keeps the reading end of the pipe to the new process open, so that where the process dies before it
has read everything, the write of more than the pipe holds (64 KiB on Linux) waits for ever
(https://github.com/python/cpython/issues/118981).
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any


def install() -> str:
    """Have spawned processes import this package first, and the start of one fail where it dies.

    Returns:
        str: What was done.
    """
    methods = set(multiprocessing.get_all_start_methods()) - {'fork'}
    contexts: list[Any] = [multiprocessing, *map(multiprocessing.get_context, methods)]
    for context in contexts:
        ForkingPickler.register(context.Process, _reduce)
    if sys.platform != 'win32' and sys.version_info < (3, 13, 8):
        _end_with_the_child()
    return 'spawned processes take these measures too, and one that dies at its start ends the run'


def _reduce(process: BaseProcess) -> tuple[Callable, tuple, dict]:
    return _new, (type(process),), vars(process)


def _new(process: type[BaseProcess]) -> BaseProcess:
    """Unpickled before the state of the process: whoever looks up this function imports the package."""
    return process.__new__(process)


def _end_with_the_child() -> None:
    # What follows is private to the standard library, which typeshed leaves out in part.
    module: Any = importlib.import_module('multiprocessing.popen_spawn_posix')

    class Popen(module.Popen):
        def _launch(self, process_obj: BaseProcess) -> None:
            try:
                super()._launch(process_obj)
            except BrokenPipeError as error:
                raise RuntimeError(
                    f'{process_obj.name} ended with exit status {self.wait()} before it had read what it is to work '
                    'on; its own error stands above'
                ) from error

        @property
        def sentinel(self) -> int:
            return self._sentinel

        @sentinel.setter
        def sentinel(self, fd: int) -> None:
            """Set when the process is there and nothing has been written yet."""
            self._sentinel = fd
            nowhere = os.open(os.devnull, os.O_RDWR)
            for end in self._fds[-2:]:  # the ends that the child has; closed later, so the numbers have to stay
                os.dup2(nowhere, end, inheritable=False)
            os.close(nowhere)

    module.Popen = Popen
