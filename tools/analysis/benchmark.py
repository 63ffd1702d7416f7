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
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.testing import random_inputs

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.analysis import networks
from tools.analysis.measure import exponent, parse_count, parse_output, peak_memory, return_pages, times_in_turn

PEERS = ('resnet50', 'swin_tiny_patch4_window7_224', 'convnext_tiny', 'poolformer_s24', 'vit_small_patch16_224')
MIN_SIZES_TO_FIT = 3
PICTURE_SUFFIXES = ('.pdf', '.png', '.svg')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks.add_arguments(parser)
    parser.add_argument('--peers', action='store_true', help=f'add, of timm: {", ".join(PEERS)}')
    parser.add_argument('--batch', type=parse_count, default=1, help='images a step; default: 1')
    parser.add_argument('--step', choices=['forward', 'train'], default='forward', help='default: forward')
    parser.add_argument(
        '--amp',
        nargs='?',
        choices=['float16', 'bfloat16'],
        const='float16',
        help='mixed precision; with no type: float16',
    )
    layout = 'of images and weights; default: nchw'
    parser.add_argument('--memory-format', choices=['nchw', 'nhwc'], default='nchw', help=layout)
    parser.add_argument('--compile', action='store_true', help='time torch.compile of the networks')
    parser.add_argument('--memory-only', action='store_true', help='two steps of each network, which are not timed')
    reports.add_arguments(parser)
    reports.add_clock(parser)
    parser.add_argument('--plot', type=parse_output, metavar='FILE', help='draw time and memory against pixels')
    return parser.parse_args(argv)


# Measuring


def make_step(network: nn.Module, inputs: tuple, args: argparse.Namespace) -> Callable[[], None]:
    """What is timed: a forward or a training step."""
    run = torch.compile(network, backend=getattr(args, 'compiler', 'inductor')) if args.compile else network
    network.train(args.step == 'train')
    dtype = getattr(torch, args.amp or 'float16')
    autocast = partial(torch.autocast, args.device.type, dtype, enabled=args.amp is not None)

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
        if not args.memory_only:
            steps[name] = step
        results.append({
            'name': name,
            'size': list(size),
            'parameters': sum(parameter.numel() for parameter in network.parameters()),
            'peak_mib': None if math.isnan(memory) else memory,
        })  # fmt: skip
    times = times_in_turn(steps, args.rounds, args.device, args.clock)
    return [{**result, 'seconds': times.get(result['name'])} for result in results]


# Reporting


def add_table(report: dict, setting: str, batch: int, results: Sequence[dict]) -> None:
    """Add the table of the networks at one size."""
    title = f'{setting}, {batch}×3×{"×".join(map(str, results[0]["size"]))}'
    if results[0]['seconds'] is None:
        rows = [[r['name'], f'{r["parameters"] / 1e6:.1f}', f'{r["peak_mib"] or math.nan:.0f}'] for r in results]
        reports.add_table(report, title, ['network', 'M parameters', 'peak MiB'], rows)
        return
    base = statistics.median(results[0]['seconds'])
    rows = []
    for result in results:
        median = statistics.median(result['seconds'])
        rows.append([
            result['name'],
            f'{result["parameters"] / 1e6:.1f}',
            reports.milliseconds(result['seconds']),
            f'{median / base:.2f}',
            f'{batch / median:.2f}',
            '–' if result['peak_mib'] is None else f'{result["peak_mib"]:.0f}',
        ])  # fmt: skip
    time = f'time / {results[0]["name"]}'
    reports.add_table(report, title, ['network', 'M parameters', 'ms (min–max)', time, 'images/s', 'peak MiB'], rows)


def growth(results: Sequence[dict]) -> dict[str, dict]:
    """For each network its pixels, times and memory, and the exponents of their growth; of time in each round too."""
    grown = {}
    for name in dict.fromkeys(result['name'] for result in results):
        own = sorted((result for result in results if result['name'] == name), key=lambda r: math.prod(r['size']))
        pixels = [math.prod(result['size']) for result in own]
        seconds = [statistics.median(result['seconds']) for result in own]
        memory = [result['peak_mib'] for result in own]
        figures = dict(pixels=pixels, seconds=seconds, memory=memory)
        if len(pixels) >= MIN_SIZES_TO_FIT:
            rounds = [exponent(pixels, times) for times in zip(*(result['seconds'] for result in own))]
            figures |= dict(time_exponent=exponent(pixels, seconds), rounds=rounds)
            if all(mib and mib > 0 for mib in memory):
                figures['memory_exponent'] = exponent(pixels, memory)
        grown[name] = figures
    return grown


def add_growth_table(report: dict, grown: dict[str, dict]) -> None:
    """Add the table of exponents, if there are sizes enough."""
    rows = []
    for name, figures in grown.items():
        if 'time_exponent' in figures:
            low, high = min(figures['rounds']), max(figures['rounds'])
            memory = f'{figures["memory_exponent"]:.2f}' if 'memory_exponent' in figures else '–'
            rows.append([name, f'{figures["time_exponent"]:.2f} ({low:.2f}–{high:.2f})', memory])
    if rows:
        title = 'Growth: exponents of time (those of single rounds) and memory against the number of pixels'
        reports.add_table(report, title, ['network', 'time', 'memory'], rows)


def plot(grown: dict[str, dict], setting: str, path: Path) -> None:
    """Draw time and memory against pixels, both on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained')
    figure.suptitle(setting)
    quantities = (('seconds', 'time', 'seconds a step'), ('memory', 'memory', 'peak memory, MiB'))
    for axis, (key, quantity, title) in zip(figure.subplots(1, 2), quantities):
        for name, figures in grown.items():
            power = figures.get(f'{quantity}_exponent')
            if None not in figures[key]:
                label = name if power is None else f'{name}: pixels^{power:.2f}'
                axis.loglog(figures['pixels'], figures[key], marker='o', label=label)
        axis.set(title=title, xlabel='pixels of an image')
        axis.grid(True, which='both', alpha=0.3)
        axis.legend(fontsize='x-small')
    figure.savefig(path, dpi=120)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write and draw what is asked for."""
    args = parse_args(argv)
    if args.plot and args.memory_only:
        raise UserError('--plot draws times, which --memory-only does not measure; give one of them')
    if args.plot and args.plot.suffix not in PICTURE_SUFFIXES:
        raise UserError(f'--plot {str(args.plot)!r}: give a file that ends in one of {PICTURE_SUFFIXES}')

    if args.memory_only:
        args.rounds = 1
        return_pages()
    torch.manual_seed(0)
    names = list(dict.fromkeys([*args.names, *(f'timm:{peer}' for peer in PEERS if args.peers)]))
    kind = [args.step, f'{args.amp} mixed' if args.amp else 'float32', args.memory_format.upper()]
    setting = ', '.join(kind + ['compiled'] * args.compile)
    measured = [measure(names, size, args) for size in args.sizes]
    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    for results in measured:
        add_table(report, setting, args.batch, results)
    report['results'] = [result for results in measured for result in results]
    grown = {} if args.memory_only else growth(report['results'])
    add_growth_table(report, grown)
    reports.write(report, args.json)
    if args.plot:
        plot(grown, setting, args.plot)


if __name__ == '__main__':
    main()
