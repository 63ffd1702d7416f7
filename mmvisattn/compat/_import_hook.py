"""Act on a module of another package when it is imported, without importing it here."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Hook = Callable[[ModuleType], AbstractContextManager]


class _HookFinder(MetaPathFinder):
    """Finds nothing itself; wraps the execution of the modules it watches."""

    def __init__(self) -> None:
        self.hooks: dict[str, Hook] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.hooks:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            hook, execute = self.hooks[name], spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with hook(module):
                    execute(module)

            # On the instance, so that the loader keeps its type and everything else it can do.
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _HookFinder()


def around_import(name: str, hook: Hook) -> None:
    """Run a module's code inside a context of ours, now or when it is first imported.

    Args:
        name (str): Full name of the module.
        hook (Hook): Takes the module and returns a context manager that its code runs in. A module that is already
            there is handed to it at once, with nothing inside.
    """
    if name in sys.modules:
        with hook(sys.modules[name]):
            pass
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.hooks[name] = hook
