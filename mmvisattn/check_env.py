"""Print what is installed, what is in use, and the remedy for each known trap: ``python -m mmvisattn.check_env``."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

# Distributions that write the same folder: of each group only one may be installed. The last of each is a maintained
# fork, which has versions of its own.
RIVALS = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmsegmentation': ('mmsegmentation', 'onedl-mmsegmentation'),
}
# A package that is not there costs these users nothing.
OPTIONAL = {
    'mmdet': 'for detection',
    'mmsegmentation': 'for segmentation',
    'opencv-python': 'another distribution of cv2 may serve',
    'setuptools': 'not needed',
}


class Row(NamedTuple):
    """One line of the table.

    Args:
        item (str): What was looked at.
        state (str): What was found.
        note (str): A remark.
        remedy (str): What to do; empty where all is well.
    """

    item: str
    state: str
    note: str = ''
    remedy: str = ''


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def bounds() -> dict[str, SpecifierSet]:
    """The versions that the package's metadata ask for, by distribution; nothing where it is not installed."""
    try:
        requirements = [Requirement(line) for line in requires('mmvisattn') or ()]
    except PackageNotFoundError:
        return {}
    return {requirement.name: requirement.specifier for requirement in requirements if requirement.specifier}


def check_python() -> Iterator[Row]:
    """The interpreter, the machine and this package."""
    try:
        wanted = SpecifierSet(metadata('mmvisattn')['Requires-Python'])
    except PackageNotFoundError:
        wanted = SpecifierSet()
    fits = wanted.contains(platform.python_version())
    yield Row('Python', platform.python_version(), sys.executable, '' if fits else f'use Python {wanted}')
    yield Row('system', platform.platform(), f'{os.cpu_count()} CPUs')
    compiler = shutil.which('c++') or shutil.which('g++')
    yield Row('compiler', compiler or 'none', 'not needed; with one, the selective scan is faster on a CPU')
    own = _version('mmvisattn')
    yield Row('mmvisattn', own or 'not installed', remedy='' if own else 'pip install --editable . in the clone')


def check_packages() -> Iterator[Row]:
    """Versions of what the package stands on."""
    wanted = bounds()
    mmcv = wanted.pop('mmcv-lite', SpecifierSet())
    for name in (*wanted, 'opencv-python', 'setuptools'):
        if name in ('ftfy', 'regex') and not _installed('mmsegmentation'):
            continue  # mmseg imports them
        yield _check_package(name, wanted.get(name, SpecifierSet()))
    yield _check_package('mmcv', mmcv, 'mmcv-lite')


def _check_package(name: str, wanted: SpecifierSet, remedy: str | None = None) -> Row:
    """One package: there or not, alone in its folder, of a version that fits.

    Args:
        name (str): Its name, or the first of its group in ``RIVALS``.
        wanted (SpecifierSet): The versions that fit.
        remedy (str, optional): What to install where it is missing; itself by default.
    """
    found = _installed(name)
    if not found:
        install = f"pip install '{remedy or name}{wanted}'"
        if name not in OPTIONAL:
            return Row(name, 'none', remedy=install)
        return Row(name, 'none', f'{OPTIONAL[name]}: {install}' if wanted else OPTIONAL[name])
    if len(found) > 1:
        advice = f'one overwrote the other: pip uninstall {" ".join(found)}, then install one of them again'
        return Row(name, ' and '.join(map(' '.join, found.items())), 'distributions of one folder', advice)
    ((distribution, version_),) = found.items()
    if distribution.startswith('onedl-'):
        return Row(distribution, version_, 'a fork with versions of its own')
    fits = wanted.contains(version_, prereleases=True)
    return Row(distribution, version_, remedy='' if fits else f"pip install '{distribution}{wanted}'")


def _installed(name: str) -> dict[str, str]:
    """Version of each installed distribution that brings a package."""
    found = {distribution: _version(distribution) for distribution in RIVALS.get(name, (name,))}
    return {distribution: version_ for distribution, version_ in found.items() if version_}


def check_imports() -> Iterator[Row]:
    """Imports that are known to fail, each with its usual cause."""
    causes = {
        'cv2': 'a system library is missing: install libgl1 and libglib2.0-0, or opencv-python-headless',
        'torchvision': 'torch and torchvision are of different builds: install both in one command from one place',
        'mmcv.ops': 'mmcv was compiled for another torch: pip uninstall mmcv; pip install mmcv-lite==2.1.0',
    }
    for name in causes | {'mmdet': '', 'mmseg': ''}:
        if name in ('mmdet', 'mmseg') and importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever it is, the table is to show it
            cause = causes.get(name) or 'see the message'
            yield Row(f'import {name}', 'fails', f'{type(error).__name__}: {str(error).splitlines()[0][:200]}', cause)
        else:
            yield Row(f'import {name}', 'works')


def check_devices() -> Iterator[Row]:
    """What torch can run on."""
    import torch

    yield Row('CPU threads', str(torch.get_num_threads()), 'OMP_NUM_THREADS sets them')
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            name, memory = torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory
            yield Row(f'GPU {i}', name, f'{memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}')
    elif torch.version.cuda and shutil.which('nvidia-smi'):
        remedy = f"update the driver, or install torch for the driver's CUDA (this one is for {torch.version.cuda})"
        yield Row('GPU', 'none usable', 'nvidia-smi is there, and torch finds no device', remedy)
    else:
        yield Row('GPU', 'none', 'everything runs on the CPU')


def check_compat() -> Iterator[Row]:
    """Which measures are in force, and whose operators mmcv uses."""
    from mmvisattn import compat

    for record in compat.report():
        yield Row(f'compat {record.name}', record.state, record.detail)


def check_kernels() -> Iterator[Row]:
    """Which backends of our own operators can run."""
    from mmvisattn.ops import depthwise_conv, selective_scan

    for operator, module in dict(selective_scan=selective_scan, depthwise_conv2d=depthwise_conv).items():
        for name, reason in module.available_backends().items():
            yield Row(f'{operator} {name}', 'unavailable' if reason else 'available', reason or '')


def table(rows: list[Row]) -> str:
    """The rows with aligned columns, and the remedies below."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f'{row.item:<{widths[0]}}  {row.state:<{widths[1]}}  {row.note}'.rstrip() for row in rows]
    remedies = [f'- {row.item}: {row.remedy}' for row in rows if row.remedy]
    lines += ['', 'To mend:', *remedies] if remedies else ['', 'Nothing to mend.']
    return '\n'.join(lines)


def main() -> int:
    """Print the table.

    Returns:
        int: The number of things to mend, as exit status 0 or 1.
    """
    checks = (check_python, check_packages, check_devices, check_compat, check_imports, check_kernels)
    rows = [row for check in checks for row in check()]
    print(table(rows))
    return int(any(row.remedy for row in rows))


if __name__ == '__main__':
    sys.exit(main())
