"""mmengine's checkpoints under torch's ``weights_only`` loading.

Unpickling runs whatever a file tells it to, so since 2.6 torch refuses all but tensors and plain values. mmengine's
checkpoints hold a little more (the log history, numpy's types), hence a stock mmengine can no longer resume from, or
test, what it has saved itself. Its download of a checkpoint, on the other hand, still switches the check off.

Here every file that mmengine loads goes through that check, with an allow-list of the classes its checkpoints hold.
A file with anything else is refused before any of it has run, and so is one whose bytes are not those that were saved:
torch reads the checksums of its archives and does not compare them.
"""

import contextlib
import functools
import os
import pickle
import re
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlparse

from ._import_hook import around_import

ARCHIVE = b'PK\x03\x04'  # how it begins
DIRECTORY = 0x10  # among the attributes of a part
LOCAL_HEADER = struct.Struct('<6s4H3L2H')  # signature and version, flags, method, …, lengths of name and extra field


class UnsafeCheckpointError(pickle.UnpicklingError):
    """A checkpoint holds something that is neither tensor nor plain value nor known to be harmless."""


def install() -> str:
    """Load mmengine's checkpoints safely, from the moment its runner is imported.

    Returns:
        str: What was done.
    """
    around_import('mmengine.runner.checkpoint', _load_safely)
    return "mmengine's checkpoints are loaded with weights_only=True and an allow-list"


@contextlib.contextmanager
def _load_safely(module: ModuleType) -> Iterator[None]:
    yield
    # All of mmengine's loaders are in this one module and say torch.load or load_url, those of its maintained fork
    # _safe_torch_load, which loads a file that it finds unsafe without the check.
    vars(module).update(torch=_SafeTorch('torch'), load_url=load_url, _safe_torch_load=load)


class _SafeTorch(ModuleType):
    """torch, but for the way it loads."""

    def load(self, file: str | os.PathLike | IO[bytes], map_location: Any = None, **kwargs: Any) -> Any:
        kwargs.pop('weights_only', None)
        return load(file, map_location, **kwargs)

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)


def load(file: str | os.PathLike | IO[bytes], map_location: Any = None, **kwargs: Any) -> Any:
    """Load a checkpoint that holds weights, plain values and what mmengine saves with them.

    Args:
        file (str | os.PathLike | IO[bytes]): Path or open file.
        map_location (Any): As for ``torch.load``.
        **kwargs (Any): Passed on to ``torch.load``.

    Returns:
        Any: What the file holds.

    Raises:
        pickle.UnpicklingError: If the file is no checkpoint, or a damaged one.
        UnsafeCheckpointError: If it holds anything that could run code. Nothing of it has run then.
    """
    import torch

    listed = torch.serialization.get_safe_globals()
    if getattr in listed:  # through which a file reaches everything; the fork's list holds it
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([item for item in listed if item is not getattr])
    # Each time, for whoever has cleared the list since.
    torch.serialization.add_safe_globals(allowed())
    with _refuse(file):
        check_whole(file)
        return torch.load(file, map_location=map_location, weights_only=True, **kwargs)


def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Load a checkpoint from the net as :func:`load` does, by way of torch hub's cache.

    Args:
        url (str): Where it is.
        model_dir (str, optional): Folder of the cache, that of torch hub by default.
        map_location (Any): As for ``torch.load``.
        progress (bool): Whether to show a progress bar.

    Returns:
        Any: What the file holds.

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


def check_whole(file: str | os.PathLike | IO[bytes], legacy: bool = True) -> None:
    """Compare what an archive of torch holds with its checksums; files of torch before 1.6 have none.

    Args:
        file (str | os.PathLike | IO[bytes]): Path or open file, which is left where it was.
        legacy (bool): Let files pass that are no archive, as those of torch before 1.6. Defaults to True.

    Raises:
        pickle.UnpicklingError: If a part of it is missing or another than was saved.
    """
    opened = open(file, 'rb') if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file)
    with opened as stream:
        start = stream.tell()
        if stream.read(4) == ARCHIVE:
            try:
                with zipfile.ZipFile(stream) as archive:
                    damaged = archive.testzip() or _odd_header(archive, stream)
            except Exception as error:  # whatever a damaged directory of the archive makes of it
                raise pickle.UnpicklingError(f'it is cut off or damaged ({error})') from None
            if damaged is not None:
                raise pickle.UnpicklingError(f'it is damaged: {damaged} in it is not what was saved')
        elif not legacy:
            raise pickle.UnpicklingError('it is empty or damaged')
        stream.seek(start)


def _odd_header(archive: zipfile.ZipFile, stream: IO[bytes]) -> str | None:
    """The first part whose header is not as torch writes it: not compressed, and as the directory has it.

    Python's reader believes the directory where the two differ, and torch's does not; of a part that is marked as a
    folder torch reads nothing and leaves the memory of a tensor as it was.
    """
    for part in archive.infolist():
        stream.seek(part.header_offset)
        _, flags, method, *_, length, _ = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
        if method or part.compress_type or part.compress_size != part.file_size or flags != part.flag_bits:
            return part.filename
        if length != len(part.orig_filename.encode()) or part.external_attr & DIRECTORY:
            return part.filename
    return None


@functools.cache
def allowed() -> list[Callable | tuple[Callable, str]]:
    """What checkpoints may hold besides what torch itself allows, in the form of torch's ``add_safe_globals``."""
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    # All that loading does with these is fill dictionaries: attributes, log, configuration. Many authors keep the
    # arguments of their training script in a Namespace.
    classes = [Namespace, HistoryBuffer, ConfigDict, np.ndarray, np.dtype, OneCycleParamScheduler]
    # An array's dtype is an instance of a class of its own; V, a record, has no use in a log.
    classes += {type(np.dtype(code)) for code in np.typecodes['All'] if code != 'V'}

    array = np.array(0.0)
    reconstruct, scalar = array.__reduce__()[0], array[()].__reduce__()[0]
    # Whichever numpy wrote the file: 2.0 renamed the package.
    packages = ('numpy.core.multiarray', 'numpy._core.multiarray')
    functions = [(reconstruct, f'{package}._reconstruct') for package in packages]
    functions += [(scalar, f'{package}.scalar') for package in packages]

    methods = {
        HistoryBuffer: ('min', 'max', 'current', 'mean'),
        OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
    }

    def method(owner: Any, name: str) -> Callable:
        """What log histories and OneCycle schedulers use getattr for: a reference to a method of their own."""
        if name not in methods.get(owner, ()):
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r}, {name!r})')
        return getattr(owner, name)

    return [*classes, *functions, (method, 'builtins.getattr')]


@contextlib.contextmanager
def _refuse(file: Any) -> Iterator[None]:
    """Turn torch's refusal into one that names the file, what is in it, and what to do."""
    if not isinstance(file, (str, os.PathLike)):
        name = getattr(file, 'name', 'the open file')
    else:
        name = file
    try:
        yield
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+?)(?:\s|\(|$)', str(error))
        if found is None:
            reason = (str(error).strip().splitlines() or [''])[-1]
            raise pickle.UnpicklingError(f'{name} cannot be read as a checkpoint: {reason}') from None
        raise UnsafeCheckpointError(
            f'{name} is refused, and nothing in it was run: it holds {found[1]}, which is neither weights nor a plain '
            'value and could run code on loading. Ask its author for a file with the weights alone. A class that you '
            'know to be harmless can be allowed before loading: torch.serialization.add_safe_globals([TheClass])'
        ) from None
    except Exception as error:  # a damaged pickle of torch before 1.6 ends in all kinds of them
        reason = (str(error).strip().splitlines() or [''])[0]
        raise pickle.UnpicklingError(
            f'{name} cannot be read as a checkpoint: {type(error).__name__}: {reason}'
        ) from error
