"""torch's Adafactor beside the one of transformers.

torch 2.5 got an optimizer named Adafactor. mmengine enters all of torch's optimizers in its registry, then that of
transformers under the same name, and its import ends in ``Adafactor is already registered``; with it ends that of
mmdet and mmseg. Versions of mmengine that know call torch's ``TorchAdafactor``, and so does this for the others.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from ._import_hook import around_import


def install() -> str | None:
    """Keep the two apart when ``mmengine.optim`` is imported.

    Returns:
        What was done, or None where nothing is needed.
    """
    if importlib.util.find_spec('transformers') is None or _told_apart():
        return None
    around_import('mmengine.optim.optimizer.builder', _register_apart)
    return "torch's Adafactor is registered as TorchAdafactor, beside that of transformers"


def _told_apart() -> bool:
    mmengine = importlib.util.find_spec('mmengine').submodule_search_locations[0]
    builder = Path(mmengine, 'optim', 'optimizer', 'builder.py')
    return 'TorchAdafactor' in builder.read_text(encoding='utf-8')


@contextlib.contextmanager
def _register_apart(module: ModuleType) -> Iterator[None]:
    import torch
    from mmengine.registry import OPTIMIZERS

    adafactor = getattr(torch.optim, 'Adafactor', None)
    register = OPTIMIZERS.register_module

    def register_module(name: str | None = None, force: bool = False, module: type | None = None) -> type | Callable:
        if name is None and module is adafactor:
            name = 'TorchAdafactor'
        # An import that failed before this measure was in place has left its optimizers behind.
        there = OPTIMIZERS.module_dict.get(name or module.__name__)
        force = force or (there is not None and there in (module, adafactor))
        return register(name=name, force=force, module=module)

    OPTIMIZERS.register_module = register_module
    try:
        yield
    finally:
        del OPTIMIZERS.register_module
