"""mmengine's look-up of installed packages without ``pkg_resources``.

``_base_ = 'mmdet::...'`` in a config asks mmengine where mmdet is installed, and mmengine 0.10 asks ``pkg_resources``,
which setuptools no longer has: any such config fails with ``No module named 'pkg_resources'``. ``importlib.metadata``
knows the same things. The maintained fork of mmengine asks it, but for ``mmsegmentation``, whose fork is called
``onedl-mmsegmentation``.
"""

import importlib.util
import sys
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

FORK = 'onedl-'


def install() -> str | None:
    """Replace mmengine's three functions wherever they have been imported, if they cannot work.

    Returns:
        str | None: What was done, or None where nothing is needed.
    """
    fork = _found(f'{FORK}mmengine')
    if importlib.util.find_spec('pkg_resources') is not None and not fork:
        return None
    from mmengine.utils import package_utils

    for function in (is_installed, get_installed_path, package2module):
        name = function.__name__
        original = getattr(package_utils, name)
        for module in list(sys.modules.values()):
            if getattr(module, '__name__', '').split('.')[0] == 'mmengine':
                if vars(module).get(name) is original:
                    setattr(module, name, function)
    reason = 'forks of the toolboxes' if fork else 'no pkg_resources'
    return f'{reason}; mmengine finds packages through importlib.metadata'


def _found(package: str) -> bool:
    """Whether a distribution of this name is installed."""
    with suppress(PackageNotFoundError):
        return bool(distribution(package))
    return False


def _distribution(package: str) -> Distribution:
    """A distribution, or its maintained fork."""
    return distribution(package if _found(package) or not _found(FORK + package) else FORK + package)


def is_installed(package: str) -> bool:
    """Whether a package is installed.

    Args:
        package (str): Name of the distribution or of the module.
    """
    if _found(package) or _found(FORK + package):
        return True
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def get_installed_path(package: str) -> str:
    """Folder of an installed package, editable installs included.

    Args:
        package (str): Name of the distribution (``mmsegmentation``) or of the module (``mmseg``).

    Returns:
        str: Its path, such as ``.../site-packages/mmseg``.

    Raises:
        PackageNotFoundError: If it is not installed.
        RuntimeError: If it has no folder of its own (a namespace package, or a single file).
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        package = package2module(package)
        spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise RuntimeError(f'{package} has no folder of its own: it is no package, or a namespace package')
    return str(Path(spec.origin).parent)


def package2module(package: str) -> str:
    """Name of the module that a distribution installs.

    Args:
        package (str): Name of the distribution, such as ``mmsegmentation``.

    Returns:
        str: Name of the module, such as ``mmseg``.

    Raises:
        PackageNotFoundError: If it is not installed.
        ValueError: If it does not say.
    """
    installed = _distribution(package)
    names = (installed.read_text('top_level.txt') or '').split()
    # Builders other than setuptools write no top_level.txt, but every wheel lists its files.
    names += [
        file.parts[0]
        for file in installed.files or ()
        if PurePosixPath(*file.parts[1:]) == PurePosixPath('__init__.py')
    ]
    if not names:
        raise ValueError(f'cannot tell which module the package {package} installs')
    return names[0]
