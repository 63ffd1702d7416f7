"""Print what is installed, what is in use, and the remedy for each known trap: ``python -m mmvisattn.check_env``."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

# Distribution, lowest version, first version too high; None where there is no such bound.
PACKAGES = [
    ('torch', '2.1', None),
    ('torchvision', '0.16', None),
    ('numpy', None, None),
    ('opencv-python', None, None),
    ('timm', '1.0', None),
    ('mmengine', '0.10.4', None),
    ('mmdet', '3.3', '3.4'),
    ('mmsegmentation', '1.2.2', '1.3'),
    ('setuptools', None, None),
]
# A package that is not there costs these users nothing.
OPTIONAL = {
    'mmdet': "for detection: pip install 'mmdet>=3.3,<3.4'",
    'mmsegmentation': "for segmentation: pip install 'mmsegmentation>=1.2.2,<1.3' ftfy regex",
    'opencv-python': 'another distribution of cv2 may serve',
    'setuptools': 'not needed',
}


class Row(NamedTuple):
    """One line of the table.

    Args:
        item: What was looked at.
        state: What was found.
        note: A remark.
        remedy: What to do; empty where all is well.
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


def check_python() -> Iterator[Row]:
    """The interpreter and the machine."""
    wrong = not (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield Row('Python', platform.python_version(), sys.executable, 'use Python 3.10, 3.11 or 3.12' if wrong else '')
    yield Row('system', platform.platform(), f'{os.cpu_count()} CPUs')
    compiler = shutil.which('c++') or shutil.which('g++')
    yield Row('compiler', compiler or 'none', 'not needed; with one, the selective scan is faster on a CPU')


def check_packages() -> Iterator[Row]:
    """Versions of what the package stands on."""
    from mmengine.utils import digit_version

    for name, lowest, beyond in PACKAGES:
        found = _version(name)
        if found is None:
            optional = OPTIONAL.get(name)
            yield Row(name, 'none', optional or '', '' if optional else f'pip install {name}')
            continue
        low = lowest and digit_version(found) < digit_version(lowest)
        high = beyond and digit_version(found) >= digit_version(beyond)
        bounds = ','.join([f'>={lowest}'] * bool(lowest) + [f'<{beyond}'] * bool(beyond))
        yield Row(name, found, remedy=f"pip install '{name}{bounds}'" if low or high else '')
    yield from check_mmcv()
    if _version('mmsegmentation'):
        missing = [name for name in ('ftfy', 'regex') if _version(name) is None]
        if missing:
            yield Row(' '.join(missing), 'none', 'mmseg imports them', f'pip install {" ".join(missing)}')


def check_mmcv() -> Iterator[Row]:
    """The distribution of mmcv: full, lite, or both at once."""
    from mmengine.utils import digit_version

    full, lite = _version('mmcv'), _version('mmcv-lite')
    if full and lite:
        remedy = 'one overwrote the other: pip uninstall mmcv mmcv-lite, then install one of them again'
        yield Row('mmcv', f'{full} and lite {lite}', 'two distributions in one folder', remedy)
        return
    found = full or lite
    if not found:
        yield Row('mmcv', 'none', remedy='pip install mmcv-lite==2.1.0 (no compiler needed)')
        return
    wrong = not digit_version('2.0.0') <= digit_version(found) < digit_version('2.2.0')
    remedy = "mmdet and mmseg take mmcv >= 2.0 and < 2.2: pip install 'mmcv-lite>=2.0,<2.2'" if wrong else ''
    yield Row('mmcv' if full else 'mmcv-lite', found, remedy=remedy)


def check_imports() -> Iterator[Row]:
    """Imports that are known to fail, each with its usual cause."""
    causes = {
        'cv2': 'a system library is missing: install libgl1 and libglib2.0-0, or opencv-python-headless',
        'torchvision': 'torch and torchvision are of different builds: install both in one command from one place',
        'mmcv.ops': 'mmcv was compiled for another torch: pip uninstall mmcv; pip install mmcv-lite==2.1.0',
    }
    for name in causes | {'mmdet': '', 'mmseg': ''}:
        if name in ('mmdet', 'mmseg') and _version({'mmseg': 'mmsegmentation'}.get(name, name)) is None:
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
        The number of things to mend, as exit status 0 or 1.
    """
    checks = (check_python, check_packages, check_devices, check_compat, check_imports, check_kernels)
    rows = [row for check in checks for row in check()]
    print(table(rows))
    return int(any(row.remedy for row in rows))


if __name__ == '__main__':
    sys.exit(main())
