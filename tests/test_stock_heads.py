"""Stock models of both toolboxes train and predict on our backbones, with nothing changed but these and the channels.

A few of each are run every time. ``make test-heads`` runs every head on every backbone and writes ``docs/heads.md``.
"""

import datetime
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mmvisattn.compat import mmcv_ext

import mmdet
import mmengine
import mmseg
import pytest
import torch

from tests.stock_heads import COLUMNS, HEADS, NECK, NETWORKS, NO_TENSOR_MODE, run, takes_pyramid

DOCUMENT = Path(__file__).parent.parent / 'docs/heads.md'
MARK = '<!-- written by `make test-heads` -->\n'


class Refused(NamedTuple):
    """What cannot work: on which backbones, words of the line or the error that it ends in, and the reason."""

    networks: Collection[str]
    words: str
    reason: str


REFUSED = {
    'DPT': Refused(
        COLUMNS,
        'len(x) == 2',
        'its head asks for pairs of a map and a class token, and no backbone here has a class token.',
    ),
    'DMNet': Refused(
        [network for network in NETWORKS if network != 'FlexViT'],
        'view size is not compatible',
        'its dynamic convolution takes a `view` of a map, which fails where maps lie in memory with channels last, on '
        'any backbone. FCViT gives such maps on the CPU alone.',
    ),
    'PSANet': Refused(NETWORKS, 'psamask_forward', 'needs a compiled mmcv; `psamask` is not among the operators here.'),
}
if mmcv_ext.compiled():
    del REFUSED['PSANet']
    REFUSED['VFNet'] = Refused(
        ['FCViT'],
        'input must be contiguous',
        "mmcv's compiled deformable convolution takes no map with channels last, which FCViT gives on the CPU.",
    )
# Head and backbone in turn, without those that take the longest.
NOT_EVERY_TIME = {
    'PAA', 'BoxInst',  # need packages that mmdet itself does without
    'Cascade Mask R-CNN', 'HTC', 'SCNet', 'PointRend (mmdet)', 'QueryInst', 'SOLO', 'SOLOv2',
}  # fmt: skip
# A head of a single scale has no two levels for the neck.
PAIRS = [(head, network) for network in COLUMNS for head in HEADS if network != NECK or takes_pyramid(head)]
DIAGONAL = [
    (head, list(NETWORKS)[i % len(NETWORKS)])
    for i, head in enumerate(head for head in HEADS if head not in NOT_EVERY_TIME)
]
# Of the neck: after an FPN of five levels, a stock pyramid of three, and an FPN that the stock model does not have.
WITH_NECK = ['Mask R-CNN', 'RTMDet', 'UPerNet']


def answer(head: str, network: str) -> None:
    """Run a pair; what cannot work must end as it says."""
    if works(head, network):
        run(head, network)
        return
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError)) as error:
        run(head, network)
    assert REFUSED[head].words in f'{error.traceback[-1].statement} {error.value}'


def works(head: str, network: str) -> bool:
    """Whether a backbone or the neck can be had with a head."""
    return head not in REFUSED or network not in REFUSED[head].networks


@pytest.mark.parametrize(('head', 'network'), [*DIAGONAL, *((head, NECK) for head in WITH_NECK)])
def test_diagonal(head, network):
    answer(head, network)


@pytest.fixture(scope='module')
def passed() -> Iterator[set[tuple[str, str]]]:
    """The pairs that have passed; the table is written where these are all there are."""
    pairs: set[tuple[str, str]] = set()
    yield pairs
    if len(pairs) == len(PAIRS):
        DOCUMENT.write_text(DOCUMENT.read_text().split(MARK)[0] + MARK + table())


@pytest.mark.slow
@pytest.mark.parametrize(('head', 'network'), PAIRS)
def test_every_head_on_every_backbone(head, network, passed):
    answer(head, network)
    passed.add((head, network))


def table() -> str:
    """What `docs/heads.md` says of the run."""
    versions = ', '.join(f'{module.__name__} {module.__version__}' for module in (torch, mmengine, mmdet, mmseg))
    count = sum(works(head, network) for head, network in PAIRS)
    lines = [
        f'{count} of {len(PAIRS)} pairs passed on {datetime.date.today()} ({platform.machine()} CPU, {versions}).\n',
        f'| model | stock config | {" | ".join(COLUMNS)} |',
        f'|---|---|{"---|" * len(COLUMNS)}',
    ]
    for head, path in HEADS.items():
        marks = [('yes' if works(head, network) else 'no') if (head, network) in PAIRS else '–' for network in COLUMNS]
        lines.append(f'| {head} | `{path.replace("/", "::", 1)}` | {" | ".join(marks)} |')
    lines += [f'\n{head}: {reason}' for head, (_, _, reason) in REFUSED.items()]
    lines.append(
        f'\nWithout tensor mode, which mmseg calls without what their heads need: {", ".join(NO_TENSOR_MODE)}.'
    )
    return '\n'.join(lines) + '\n'
