"""Time and memory of networks, side by side in one run: latency, throughput, peak memory, and growth with the image.

The networks take turns, A B C A B C …, so that a noisy machine hits all alike; times are medians with minimum and
maximum of all rounds, ratios are of medians to the first network. The forward of a detector or segmentor goes as far as
its heads' maps, without post-processing; a training step is forward, loss on random targets and backward, without the
optimizer. That of a backbone goes back from a random gradient of its maps. Peak memory is what a step takes beside
weights and images. Where there are several sizes, time and memory are fitted by a power of the number of pixels.
Weights are random.

Examples:
    python tools/analysis/benchmark.py FCViT:b12 --peers --step train
    python tools/analysis/benchmark.py configs/mini/fcvit-mini_fpn_ade20k.py --part backbone --sizes 256x256 800x1344
    python tools/analysis/benchmark.py DefocusMamba:base,token_order=raster --sizes 256x256 512x512 1024x1024 \
        --json mamba.json --plot mamba.png
    python tools/analysis/benchmark.py --from-json fcvit.json mamba.json
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.testing import random_inputs

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import networks
from tools.analysis import report as reports
from tools.analysis.measure import parse_count, parse_size, peak_memory, times_in_turn

PEERS = ('resnet50', 'swin_tiny_patch4_window7_224', 'convnext_tiny', 'poolformer_s24', 'vit_small_patch16_224')
MIN_SIZES_TO_FIT = 3
PICTURE_SUFFIXES = ('.pdf', '.png', '.svg')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=networks.NAMES)
    parser.add_argument('--peers', action='store_true', help=f'add, of timm: {", ".join(PEERS)}')
    parser.add_argument(
        '--sizes', type=parse_size, nargs='+', default=[(512, 512)], metavar='HxW', help='default: 512x512'
    )
    parser.add_argument('--batch', type=parse_count, default=1, help='images a step; default: 1')
    parser.add_argument('--step', choices=['forward', 'train'], default='forward', help='default: forward')
    parser.add_argument(
        '--part',
        choices=networks.PARTS,
        default='model',
        help='what to time of a config; `neck` has the backbone with it; default: model',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        choices=['float16', 'bfloat16'],
        const='float16',
        help='mixed precision; with no type: float16',
    )
    parser.add_argument(
        '--memory-format', choices=['nchw', 'nhwc'], default='nchw', help='of images and weights; default: nchw'
    )
    parser.add_argument('--compile', action='store_true', help='time torch.compile of the networks')
    reports.add_arguments(parser)
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw time and memory against pixels')
    parser.add_argument(
        '--from-json', type=Path, nargs='+', metavar='FILE', help='measure nothing, print what --json wrote'
    )
    return parser.parse_args(argv)


# Measuring


def make_step(network: nn.Module, inputs: tuple, args: argparse.Namespace) -> Callable[[], None]:
    """What is timed: a forward or a training step."""
    run = torch.compile(network) if args.compile else network
    network.train(args.step == 'train')

    def autocast() -> torch.autocast:
        dtype = getattr(torch, args.amp or 'float16')
        return torch.autocast(args.device.type, dtype, enabled=args.amp is not None)

    def forward() -> None:
        with torch.no_grad(), autocast():
            run(*inputs)

    def train_model() -> None:
        with autocast():
            losses = run(*inputs, mode='loss')
        network.parse_losses(losses)[0].backward()
        network.zero_grad()

    grads = []

    def train_features() -> None:
        with autocast():
            outs = run(*inputs)
        outs = [outs] if isinstance(outs, Tensor) else outs
        if not grads:  # Not ones: behind a norm, the gradient of a sum is zero.
            grads.extend(torch.randn_like(out) for out in outs)
        torch.autograd.backward(outs, grads)
        network.zero_grad()

    if args.step == 'forward':
        return forward
    return train_model if isinstance(network, BaseModel) else train_features


def measure(names: Sequence[str], size: tuple[int, int], args: argparse.Namespace) -> list[dict]:
    """Time and memory of all networks at one size."""
    steps, results = {}, []
    memory_format = torch.channels_last if args.memory_format == 'nhwc' else torch.contiguous_format
    for name in names:
        network = networks.build(name, args.part, size).to(args.device, memory_format=memory_format)
        images, *samples = random_inputs(network, args.batch, size, args.device)
        step = make_step(network, (images.contiguous(memory_format=memory_format), *samples), args)
        step()  # what is allocated or compiled once
        memory = peak_memory(step, args.device)
        network.zero_grad()
        steps[name] = step
        results.append({
            'name': name,
            'size': list(size),
            'parameters': sum(parameter.numel() for parameter in network.parameters()),
            'peak_mib': None if math.isnan(memory) else memory,
        })  # fmt: skip
    times = times_in_turn(steps, args.rounds, args.device)
    return [{**result, 'seconds': times[result['name']]} for result in results]


# Reporting


def tables(report: dict) -> Iterator[str]:
    """The lines of a table for each size."""
    for size in dict.fromkeys(tuple(result['size']) for result in report['results']):
        results = [result for result in report['results'] if tuple(result['size']) == size]
        base = statistics.median(results[0]['seconds'])
        yield ''
        yield f'{report["setting"]}, {report["batch"]}×3×{size[0]}×{size[1]}'
        yield ''
        yield f'| network | M parameters | ms (min–max) | time / {results[0]["name"]} | images/s | peak MiB |'
        yield '|---|---|---|---|---|---|'
        for result in results:
            times = result['seconds']
            median = statistics.median(times)
            memory = '–' if result['peak_mib'] is None else f'{result["peak_mib"]:.0f}'
            yield (
                f'| {result["name"]} | {result["parameters"] / 1e6:.1f} | {reports.milliseconds(times)} | '
                f'{median / base:.2f} | {report["batch"] / median:.2f} | {memory} |'
            )


def growth(report: dict) -> dict[str, dict]:
    """For each network its pixels, times and memory, and the exponents of their growth; of time in each round too."""
    grown = {}
    for name in dict.fromkeys(result['name'] for result in report['results']):
        results = sorted((r for r in report['results'] if r['name'] == name), key=lambda r: math.prod(r['size']))
        pixels = [math.prod(result['size']) for result in results]
        seconds = [statistics.median(result['seconds']) for result in results]
        memory = [result['peak_mib'] for result in results]
        figures = dict(pixels=pixels, seconds=seconds, memory=memory)
        if len(pixels) >= MIN_SIZES_TO_FIT:
            rounds = [exponent(pixels, times) for times in zip(*(result['seconds'] for result in results))]
            figures |= dict(time_exponent=exponent(pixels, seconds), rounds=rounds)
            if all(mib and mib > 0 for mib in memory):
                figures['memory_exponent'] = exponent(pixels, memory)
        grown[name] = figures
    return grown


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent e of the power law y ∝ xᵉ that fits best."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def growth_table(report: dict) -> Iterator[str]:
    """The lines of a table of exponents, if there are sizes enough."""
    fitted = {name: figures for name, figures in growth(report).items() if 'time_exponent' in figures}
    if not fitted:
        return
    yield ''
    yield 'Growth: exponents of time (those of single rounds) and memory against the number of pixels'
    yield ''
    yield '| network | time | memory |'
    yield '|---|---|---|'
    for name, figures in fitted.items():
        memory = f'{figures["memory_exponent"]:.2f}' if 'memory_exponent' in figures else '–'
        low, high = min(figures['rounds']), max(figures['rounds'])
        yield f'| {name} | {figures["time_exponent"]:.2f} ({low:.2f}–{high:.2f}) | {memory} |'


def plot(measured: Sequence[dict], path: Path) -> None:
    """Draw time and memory against pixels, both on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    axes = figure.subplots(1, 2)
    settings = {report['setting'] for report in measured}
    figure.suptitle('; '.join(sorted(settings)))
    for report in measured:
        told = f', {report["setting"]}' if len(settings) > 1 else ''
        for name, figures in growth(report).items():
            for axis, quantity, values in zip(axes, ('time', 'memory'), (figures['seconds'], figures['memory'])):
                power = figures.get(f'{quantity}_exponent')
                label = name + told + ('' if power is None else f': pixels^{power:.2f}')
                if None not in values:
                    axis.loglog(figures['pixels'], values, marker='o', label=label)
    for axis, title in zip(axes, ('seconds a step', 'peak memory, MiB')):
        axis.set(title=title, xlabel='pixels of an image')
        axis.grid(True, which='both', alpha=0.3)
        axis.legend(fontsize='x-small')
    figure.savefig(path, dpi=120)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write and draw what is asked for."""
    args = parse_args(argv)
    names = list(dict.fromkeys([*args.names, *(f'timm:{peer}' for peer in PEERS if args.peers)]))
    if bool(names) == bool(args.from_json):
        raise UserError(f'give what to time, or reports by --from-json, but not both; to time is a {networks.NAMES}')
    for path in filter(None, (args.json, args.plot)):
        if not path.absolute().parent.is_dir():
            raise UserError(f'{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}')
    if args.plot and args.plot.suffix not in PICTURE_SUFFIXES:
        raise UserError(f'--plot {str(args.plot)!r}: give a file that ends in one of {PICTURE_SUFFIXES}')

    if args.from_json:
        measured = [reports.read(path) for path in args.from_json]
        if not all('results' in report for report in measured):
            raise UserError('--from-json takes files that this tool wrote')
    else:
        torch.manual_seed(0)
        kind = [args.step, f'{args.amp} mixed' if args.amp else 'float32', args.memory_format.upper()]
        report = reports.start(__file__, argv, args)
        report['setting'] = ', '.join(kind + ['compiled'] * args.compile)
        report['batch'] = args.batch
        report['results'] = [result for size in args.sizes for result in measure(names, size, args)]
        reports.write(report, args.json)
        measured = [report]
    for report in measured:
        print('\n'.join([*reports.describe(report), *tables(report), *growth_table(report)]), end='\n\n')
    if args.plot:
        plot(measured, args.plot)


if __name__ == '__main__':
    main()
