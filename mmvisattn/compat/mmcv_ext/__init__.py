"""``mmcv._ext`` without a compiler.

``mmcv-lite`` has all of mmcv's Python code and none of its compiled operators. Every detector and segmentor imports
``mmcv.ops``, and that import stops at ``No module named 'mmcv._ext'``. Where no compiled module is found, the one
made here takes its place. It has every name that ``mmcv.ops`` asks for: those that stock heads use run on the
kernels of torch and torchvision, on every device these run on; the others say what to do when they are called.
"""

import ast
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType

NAME = 'mmcv._ext'
MODULES = ('nms', 'roi_align', 'roi_pool', 'deform_conv', 'ms_deform_attn', 'focal_loss')


def install() -> str | None:
    """Offer ``mmcv._ext`` to later imports, unless mmcv is compiled or not installed at all.

    Returns:
        str | None: What was done, or None where nothing is needed.
    """
    if not mmcv_found() or compiled():
        return None
    # Last, so that a compiled module is found first wherever there is one.
    sys.meta_path.append(_ExtFinder())
    return f'mmcv has no compiled operators; {NAME} is supplied on the kernels of torchvision'


def mmcv_found() -> bool:
    """Whether mmcv, full or lite, can be imported."""
    return importlib.util.find_spec('mmcv') is not None


def compiled() -> bool:
    """Whether mmcv brings its own compiled operators."""
    mmcv = importlib.util.find_spec('mmcv')
    path = mmcv.submodule_search_locations if mmcv else None
    return bool(path) and importlib.machinery.PathFinder.find_spec(NAME, path) is not None


def supplied() -> dict[str, Callable]:
    """The functions that are implemented here, by their name in ``mmcv._ext``."""
    functions: dict[str, Callable] = {}
    for name in MODULES:
        module = importlib.import_module(f'{__name__}.{name}')
        functions.update(
            (key, value)
            for key, value in vars(module).items()
            if not key.startswith('_') and getattr(value, '__module__', None) == module.__name__
        )
    functions['get_compiler_version'] = lambda: 'not compiled'
    functions['get_compiling_cuda_version'] = lambda: 'not compiled'
    return functions


def asked_for() -> set[str]:
    """Every name that the installed ``mmcv.ops`` takes from ``mmcv._ext``, read from its source."""
    mmcv = importlib.util.find_spec('mmcv')
    assert mmcv is not None and mmcv.origin is not None  # it is installed, and a package
    names = set()
    for file in Path(mmcv.origin).parent.joinpath('ops').glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', None) == 'load_ext':
                names.update(ast.literal_eval(node.args[1]))
    return names


def _missing(name: str) -> Callable:
    def operator(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f'{NAME}.{name} is not among the operators that are supplied without a compiler. For it, replace '
            'mmcv-lite by a compiled mmcv 2.1: "pip uninstall mmcv-lite", then "mim install mmcv==2.1.0" with a torch '
            "that has a wheel of it, or build it: \"pip install 'setuptools<81'; MMCV_WITH_OPS=1 pip install "
            '--no-binary mmcv --no-build-isolation mmcv==2.1.0"'
        )

    operator.__name__ = name
    return operator


class _ExtFinder(MetaPathFinder, Loader):
    """Finds and makes the one module ``mmcv._ext``."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == NAME:
            return importlib.machinery.ModuleSpec(name, self, origin=__file__)
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(supplied())

        def __getattr__(name: str) -> Callable:
            if name.startswith('_'):
                raise AttributeError(f'module {NAME!r} has no attribute {name!r}')
            return _missing(name)

        vars(module)['__getattr__'] = __getattr__
