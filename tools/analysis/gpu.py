"""All that a short time on a GPU should answer, in one command, the most important first.

- operators: forward and backward of the depthwise convolution and of the selective scan, by every backend that runs, in
  milliseconds and in gigabytes a second, beside a copy on the device. What counts as moved are inputs, results and
  gradients once each, so that the copy is the ceiling.
- detectors: a training step of Mask R-CNN in mixed precision, FCViT beside the backbones of mmdet.
- backbones: forward and training step of ours and of `benchmark.py --peers`, in float16 and bfloat16, in both memory
  formats, eager; then compiled, in bfloat16 and the better format of convolutional networks, channels-last.

After each table the report is written; no further one is begun when `--minutes` have passed. What does not run is told
in its row. `--tiny` is the same with small networks and images, to try it without a GPU.

Example:
    python tools/analysis/gpu.py --minutes 25 --json docs/performance/gpu.json
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.ops import depthwise_conv, selective_scan

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import benchmark, benchmark_operators
from tools.analysis import measurements as reports
from tools.analysis.measure import parse_count, times_in_turn

FULL = dict(
    backbones=('FCViT:b12', 'DefocusMamba:base', 'DefocusViT:base', 'DefocusRetNet:base', 'FlexViT:base'),
    peers=tuple(f'timm:{peer}' for peer in benchmark.PEERS),
    detectors=(
        'configs/fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco.py',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    ),
    batch=8,
    size=(512, 512),
    detector_size=(800, 1344),
    maps=((8, 64, 128, 128), (8, 320, 32, 32)),
    scan=(8, 1536, 1024),
    dtypes=('float16', 'bfloat16'),
    compiler='inductor',
)
TINY = FULL | dict(
    backbones=('FCViT:tiny',),
    peers=('timm:resnet10t',),
    detectors=('configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py',),
    batch=1,
    size=(64, 64),
    detector_size=(64, 96),
    maps=((1, 8, 12, 12),),
    scan=(1, 8, 20),
    dtypes=('bfloat16',),
    compiler='eager',
)
KERNEL_SIZE = 11  # that of FCViT
LAYOUTS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}
Table = tuple[str, list[str], list[list[str]]]


def moved_gigabytes(tensors: Sequence[Tensor]) -> float:
    """Of inputs, results and gradients, each once."""
    return sum(x.nbytes for x in tensors) / 1e9


def bandwidth_rows(steps: dict[str, Callable[[], list[Tensor]]], inputs: Sequence[Tensor], args) -> list[list[str]]:
    """A row for each way to compute one operator, and first of all a copy of its first input."""
    first = inputs[0]
    target, gigabytes, rows = torch.empty_like(first), {}, []
    for name, step in list(steps.items()):
        try:
            gigabytes[name] = moved_gigabytes([*inputs, *step()])
        except Exception as error:  # whatever a kernel or its compiler fails by, the others go on
            rows.append([name, 'fails: ' + str(error).splitlines()[0][:80], '–'])
            del steps[name]
    copy = 'copy of the input'
    gigabytes[copy] = 2 * moved_gigabytes([first])
    times = times_in_turn({copy: partial(target.copy_, first), **steps}, args.rounds, args.device)
    measured = [
        [name, reports.milliseconds(seconds, 3), f'{gigabytes[name] / statistics.median(seconds):.0f}']
        for name, seconds in times.items()
    ]
    return measured + rows


def operators(args: argparse.Namespace, settings: dict) -> Iterator[Table]:
    """Depthwise convolution and selective scan."""
    columns = ['backend', 'ms (min–max)', 'GB/s']
    usable = [name for name, reason in depthwise_conv.available_backends().items() if reason is None]
    backends = [name for name in usable if name != 'triton' or args.device.type == 'cuda']
    dtype = torch.float32 if args.device.type == 'cpu' else torch.float16
    for size in settings['maps']:
        for layout, memory_format in LAYOUTS.items():
            x = torch.randn(size, device=args.device, dtype=dtype).contiguous(memory_format=memory_format)
            weight = torch.randn(size[1], 1, KERNEL_SIZE, KERNEL_SIZE, device=args.device, dtype=dtype)
            inputs = [x, weight, torch.randn(size[1], device=args.device, dtype=dtype)]
            convolve = partial(depthwise_conv.depthwise_conv2d, padding=KERNEL_SIZE // 2)
            steps = {
                name: partial(benchmark_operators.train, partial(convolve, backend=name), inputs) for name in backends
            }
            kind = str(dtype).removeprefix('torch.')
            title = f'depthwise {KERNEL_SIZE}×{KERNEL_SIZE}, forward and backward, {kind}, {layout}'
            yield f'{title}, {"×".join(map(str, size))}', columns, bandwidth_rows(steps, inputs, args)
    batch, dim, length = settings['scan']
    inputs = benchmark_operators.scan_inputs(batch, length, args.device, dim)
    scans = {
        name: partial(selective_scan.selective_scan, backend=name)
        for name in benchmark_operators.SCAN_BACKENDS[args.device.type]
    }
    for title, step in benchmark_operators.SCAN_STEPS.items():
        steps = {name: partial(step, operator, inputs) for name, operator in scans.items()}
        yield f'selective scan, {title}, {batch}×{dim}×{length}', columns, bandwidth_rows(steps, inputs, args)


def networks(args: argparse.Namespace, names: Sequence[str], size: tuple[int, int], **setting: object) -> Table:
    """A table of networks; those that do not run are told with the reason."""
    own = argparse.Namespace(**vars(args), part='model', memory_only=False, clock='wall', **setting)
    measured, failed = [], []
    for name in names:
        try:
            measured += benchmark.measure([name], size, own)
        except Exception as error:  # out of memory, or an operator that a type or compiler lacks
            failed.append([name, 'fails: ' + (str(error).splitlines() or [type(error).__name__])[0][:80], '–', '–'])
        torch.compiler.reset()
        if args.device.type == 'cuda':
            torch.cuda.empty_cache()
    rows = [
        [
            result['name'],
            reports.milliseconds(result['seconds']),
            f'{own.batch / statistics.median(result["seconds"]):.1f}',
            '–' if result['peak_mib'] is None else f'{result["peak_mib"]:.0f}',
        ]
        for result in measured
    ]
    kind = [own.step, f'{own.amp} mixed', own.memory_format.upper()] + ['compiled'] * own.compile
    title = f'{", ".join(kind)}, {own.batch}×3×{"×".join(map(str, size))}'
    return title, ['network', 'ms (min–max)', 'images/s', 'peak MiB'], rows + failed


def detectors(args: argparse.Namespace, settings: dict) -> Iterator[Table]:
    """A training step of Mask R-CNN; torch's own formats, since mmdet's heads are written for them."""
    batch = max(1, settings['batch'] // 4)
    for dtype in settings['dtypes']:
        setting = dict(step='train', amp=dtype, memory_format='nchw', compile=False, batch=batch)
        yield networks(args, settings['detectors'], settings['detector_size'], **setting)


def backbones(args: argparse.Namespace, settings: dict) -> Iterator[Table]:
    """Ours beside their peers: eager in every type and format, then compiled."""
    names, size = [*settings['backbones'], *settings['peers']], settings['size']
    eager = [(dtype, layout, False) for dtype in settings['dtypes'] for layout in ('nhwc', 'nchw')]
    for dtype, layout, compiled in [*eager, (settings['dtypes'][-1], 'nhwc', True)]:
        for step in ('forward', 'train'):
            setting = dict(step=step, amp=dtype, memory_format=layout, compile=compiled, batch=settings['batch'])
            yield networks(args, names, size, compiler=settings['compiler'], **setting)


CASES = {'operators': operators, 'detectors': detectors, 'backbones': backbones}


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure case by case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', metavar='CASE', help=f'some of {", ".join(CASES)}; default: all')
    parser.add_argument('--minutes', type=parse_count, default=25, help='no table is begun later; default: 25')
    parser.add_argument('--tiny', action='store_true', help='small networks and images')
    reports.add_arguments(parser, rounds=9)
    args = parser.parse_args(argv)
    for case in args.cases:
        if case not in CASES:
            raise UserError(f'there is no case {case!r}; give some of {", ".join(CASES)}')
    if args.device.type != 'cuda' and not args.tiny:
        raise UserError('torch sees no GPU here; give --tiny to try the command on a CPU')

    torch.manual_seed(0)
    end = time.monotonic() + 60 * args.minutes
    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    for case in args.cases or CASES:
        for table in CASES[case](args, TINY if args.tiny else FULL):
            reports.add_table(report, *table)
            reports.write(report, args.json)
            if time.monotonic() > end:
                print(f'{args.minutes} minutes have passed; give the cases that are missing to a further run')
                return


if __name__ == '__main__':
    main()
