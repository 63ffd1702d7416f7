"""What lets stock OpenMMLab run on today's torch, without a compiler.

:func:`install` is called when the package is imported. Each measure is taken only where it is needed, and says so in
one line of the log ``mmvisattn`` at level INFO. The environment variable ``MMVISATTN_COMPAT`` switches them off:
``MMVISATTN_COMPAT=0`` all of them, ``MMVISATTN_COMPAT=-ext,-weights`` those named.

========== =================================================================================================
ext        ``mmcv._ext`` on the kernels of torchvision, where mmcv is not compiled (:mod:`.mmcv_ext`)
weights    mmengine's checkpoints are loaded with ``weights_only`` (:mod:`.checkpoint`)
packages   ``mmdet::`` and ``mmseg::`` without ``pkg_resources`` (:mod:`.packages`)
workers    spawned processes take the measures as well, and the run ends where one dies (:mod:`.workers`)
losses     class weights in mmseg's cross entropy beside void pixels (:mod:`.losses`)
========== =================================================================================================
"""

import logging
import os
from typing import NamedTuple

from . import checkpoint, losses, mmcv_ext, packages, workers

ENVIRONMENT_VARIABLE = 'MMVISATTN_COMPAT'

MEASURES = {
    'ext': mmcv_ext.install,
    'weights': checkpoint.install,
    'packages': packages.install,
    'workers': workers.install,
    'losses': losses.install,
}


class Record(NamedTuple):
    """State of one measure.

    Args:
        name (str): Its name in ``MMVISATTN_COMPAT``, or ``mmcv.ops`` for the operators in use.
        state (str): For a measure ``active``, ``not needed`` or ``off``; for the operators ``compiled``, ``supplied``
            or ``none``.
        detail (str): One line for a human.
    """

    name: str
    state: str
    detail: str


_records: dict[str, Record] = {}


def install() -> None:
    """Take every measure that is needed and not switched off. A second call does nothing.

    Raises:
        ValueError: If ``MMVISATTN_COMPAT`` is not understood.
    """
    if _records:
        return
    off = _switched_off(os.environ.get(ENVIRONMENT_VARIABLE, ''))
    for name, measure in MEASURES.items():
        if name in off:
            record = Record(name, 'off', f'{ENVIRONMENT_VARIABLE}={os.environ[ENVIRONMENT_VARIABLE]}')
        elif done := measure():
            record = Record(name, 'active', done)
            logging.getLogger('mmvisattn').info('compat %s: %s', name, done)
        else:
            record = Record(name, 'not needed', '')
        _records[name] = record


def report() -> list[Record]:
    """State of each measure, and which of mmcv's operators are in use."""
    return [*_records.values(), _operators()]


def _operators() -> Record:
    if not mmcv_ext.mmcv_found():
        return Record('mmcv.ops', 'none', 'mmcv is not installed: pip install mmcv-lite==2.1.0')
    if mmcv_ext.compiled():
        return Record('mmcv.ops', 'compiled', 'all operators')
    if _records.get('ext', Record('ext', 'off', '')).state != 'active':
        return Record('mmcv.ops', 'none', f'not compiled, and not supplied: {ENVIRONMENT_VARIABLE}')
    supplied = set(mmcv_ext.supplied())
    missing = mmcv_ext.asked_for() - supplied
    return Record(
        'mmcv.ops',
        'supplied',
        f'on torchvision: {", ".join(sorted(supplied))}; need a compiled mmcv: {", ".join(sorted(missing))}',
    )


def _switched_off(value: str) -> set[str]:
    """The measures that a value of ``MMVISATTN_COMPAT`` switches off."""
    value = value.strip()
    if value in ('', '1'):
        return set()
    if value == '0':
        return set(MEASURES)
    off = {part.strip() for part in value.split(',')}
    if wrong := off - {f'-{name}' for name in MEASURES}:
        raise ValueError(
            f'{ENVIRONMENT_VARIABLE}={value} is not understood at {", ".join(sorted(wrong))}; allowed are 0, 1 and a '
            f'comma list of {", ".join(f"-{name}" for name in MEASURES)}'
        )
    return {part[1:] for part in off}
