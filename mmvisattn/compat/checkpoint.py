"""mmengine's checkpoints under torch's ``weights_only`` loading.

Unpickling runs whatever a file tells it to, so since 2.6 torch refuses all but tensors and plain values. mmengine's
checkpoints hold a little more (the log history, numpy's types), hence a stock mmengine can no longer resume from, or
test, what it has saved itself. Its download of a checkpoint, on the other hand, still switches the check off.

Here every file that mmengine loads goes through that check, with an allow-list of the classes its checkpoints hold.
A file with anything else is refused before any of it has run.
"""

import codecs
import contextlib
import functools
import io
import os
import pickle
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlparse

from ._import_hook import around_import


class UnsafeCheckpointError(pickle.UnpicklingError):
    """A checkpoint holds something that is neither tensor nor plain value nor known to be harmless."""


def install() -> str:
    """Load mmengine's checkpoints safely, from the moment its runner is imported.

    Returns:
        What was done.
    """
    around_import('mmengine.runner.checkpoint', _load_safely)
    return "mmengine's checkpoints are loaded with weights_only=True and an allow-list"


@contextlib.contextmanager
def _load_safely(module: ModuleType) -> Iterator[None]:
    yield
    # All of mmengine's loaders are in this one module and say torch.load or load_url.
    module.torch = _SafeTorch('torch')
    module.load_url = load_url


class _SafeTorch(ModuleType):
    """torch, but for the way it loads."""

    def load(self, file: str | os.PathLike | IO[bytes], map_location: Any = None, **kwargs) -> Any:
        kwargs.pop('weights_only', None)
        return load(file, map_location, **kwargs)

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)


def load(file: str | os.PathLike | IO[bytes], map_location: Any = None, **kwargs) -> Any:
    """Load a checkpoint that holds weights, plain values and what mmengine saves with them.

    Args:
        file: Path or open file.
        map_location: As for ``torch.load``.
        **kwargs: Passed on to ``torch.load``.

    Returns:
        What the file holds.

    Raises:
        UnsafeCheckpointError: If it holds anything that could run code. Nothing of it has run then.
    """
    import torch

    with _refuse(file):
        if _allow():
            return torch.load(file, map_location=map_location, weights_only=True, **kwargs)
        return torch.load(file, map_location=map_location, pickle_module=_restricted_pickle(), **kwargs)


def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Load a checkpoint from the net as :func:`load` does, by way of torch hub's cache.

    Args:
        url: Where it is.
        model_dir: Folder of the cache, that of torch hub by default.
        map_location: As for ``torch.load``.
        progress: Whether to show a progress bar.

    Returns:
        What the file holds.

    Raises:
        UnsafeCheckpointError: If it holds anything that could run code. Nothing of it has run then.
    """
    import torch

    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    file = folder / Path(urlparse(url).path).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=progress)
    return load(file, map_location)


@functools.cache
def allowed() -> dict[str, Any]:
    """What checkpoints may hold besides what torch itself allows, by the name that files give it."""
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    # All that loading does with these is fill dictionaries: attributes, log, configuration. Many authors keep the
    # arguments of their training script in a Namespace.
    classes = [Namespace, HistoryBuffer, ConfigDict, np.ndarray, np.dtype, OneCycleParamScheduler]
    # An array's dtype is an instance of a class of its own; V, a record, has no use in a log.
    classes += {type(np.dtype(code)) for code in np.typecodes['All'] if code != 'V'}
    # What numpy's numbers and the milestones of a schedule are written with; torch itself allows them since 2.6.
    classes += [codecs.encode, Counter]
    found = {f'{cls.__module__}.{cls.__qualname__}': cls for cls in classes}

    array = np.array(0.0)
    functions = {'_reconstruct': array.__reduce__()[0], 'scalar': array[()].__reduce__()[0]}
    for name, function in functions.items():
        # Whichever numpy wrote the file: 2.0 renamed the package.
        for package in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            found[f'{package}.{name}'] = _renamed(function, package, name)

    methods = {
        HistoryBuffer: ('min', 'max', 'current', 'mean'),
        OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
    }

    def method(owner: Any, name: str) -> Callable:
        """What log histories and OneCycle schedulers use getattr for: a reference to a method of their own."""
        if name not in methods.get(owner, ()):
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r}, {name!r})')
        return getattr(owner, name)

    found['builtins.getattr'] = _renamed(method, 'builtins', 'getattr')
    return found


def _renamed(function: Callable, module: str, name: str) -> Callable:
    """A function that torch's allow-list takes for ``module.name``."""

    def renamed(*args: Any) -> Any:
        return function(*args)

    renamed.__module__, renamed.__name__, renamed.__qualname__ = module, name, name
    return renamed


def _allow() -> bool:
    """Enter the allow-list in torch's own, if its check can make use of it."""
    import torch

    # The allow-list came with 2.4, but objects with a state pass the check only since 2.6.
    if torch.__version__ < (2, 6):
        return False
    there = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([value for value in allowed().values() if value not in there])
    return True


@functools.cache
def _restricted_pickle() -> ModuleType:
    """The pickle module with no more globals than the allow-lists, for torch before 2.6."""
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    from torch._weights_only_unpickler import _get_allowed_globals

    known = {**_get_allowed_globals(), **allowed()}

    # The Python one, for a say in BUILD, which can set attributes of anything; the files have few instructions.
    class Unpickler(pickle._Unpickler):
        dispatch = dict(pickle._Unpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            # Files are written with the module names of Python 2.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            if f'{module}.{name}' not in known:
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')
            return known[f'{module}.{name}']

        def load(self) -> Any:
            try:
                return super().load()
            except pickle.UnpicklingError:
                raise
            except Exception as error:
                raise pickle.UnpicklingError(str(error)) from error

        def load_build(self) -> None:
            cls = type(self.stack[-2])
            if cls not in known.values():
                name = f'{cls.__module__}.{cls.__qualname__}'
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {name}')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    restricted = ModuleType('restricted_pickle')
    restricted.Unpickler = Unpickler
    restricted.load = lambda file, **kwargs: Unpickler(file, **kwargs).load()
    restricted.loads = lambda data, **kwargs: Unpickler(io.BytesIO(data), **kwargs).load()
    restricted.UnpicklingError = pickle.UnpicklingError
    return restricted


@contextlib.contextmanager
def _refuse(file: Any) -> Iterator[None]:
    """Turn torch's refusal into one that names the file, what is in it, and what to do."""
    try:
        yield
    except pickle.UnpicklingError as error:
        if not isinstance(file, (str, os.PathLike)):
            file = getattr(file, 'name', 'the open file')
        found = re.search(r'GLOBAL (\S+?)(?:\s|\(|$)', str(error))
        if found is None:
            reason = str(error).strip().splitlines()[-1]
            raise pickle.UnpicklingError(f'{file} cannot be read as a checkpoint: {reason}') from None
        raise UnsafeCheckpointError(
            f'{file} is refused, and nothing in it was run: it holds {found[1]}, which is neither weights nor a plain '
            'value and could run code on loading. Ask its author for a file with the weights alone. A class that you '
            'know to be harmless can be allowed before loading: torch.serialization.add_safe_globals([TheClass])'
        ) from None
