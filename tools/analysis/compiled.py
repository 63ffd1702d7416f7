"""What `torch.compile` gives and costs: each network eager and compiled in turn, and how long compiling took.

Without names: the backbones, the necks, which get maps of the size that a backbone makes of such images, and the small
detectors and segmentors of `configs/mini`. A training step is forward, loss and backward. Steps are timed as in
`benchmark.py`; compiling is told in seconds of the processor, its compilers included, with one of them at a time, and
with the number of graphs, of which a backbone or a neck has one. With `--json`, what the file holds already is not
measured again, so that a run that was stopped goes on.

Example:
    python tools/analysis/compiled.py FCViT:tiny SimpleFPN:in_channels=384 --step train --sizes 224x224
"""

import argparse
import copy
import gc
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.models.necks import SimpleFPN
from mmvisattn.testing import random_inputs

import torch
from torch import nn
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import benchmark, networks
from tools.analysis import measurements as reports
from tools.analysis.measure import parse_count, times_in_turn

NETWORKS = (
    'FCViT:tiny',
    'DefocusMamba:small,token_order=raster',
    'DefocusViT:small,token_order=raster',
    'DefocusRetNet:small,token_order=raster',
    'FlexViT:small',
    'SimpleFPN:in_channels=384',
    'FlexAttentionNeck:in_channels=256',
    'configs/mini/fcvit-mini_fpn_ade20k.py',
    'configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py',
    'configs/mini/mask-rcnn_fcvit-mini_fpn_flexattention_coco.py',
    'configs/mini/mask-rcnn_defocus-vit-mini_simple-fpn_coco.py',
)
COLUMNS = ['network', 'eager, ms (min–max)', 'compiled, ms (min–max)', 'compiled / eager', 'graphs', 'compiling, s']


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks.add_arguments(parser, nargs='*', size=(224, 224))
    parser.add_argument('--batch', type=parse_count, default=2, help='images a step; default: 2')
    parser.add_argument('--step', choices=['forward', 'train'], default='forward', help='default: forward')
    reports.add_arguments(parser)
    reports.add_clock(parser)
    args = parser.parse_args(argv)
    args.names = args.names or list(NETWORKS)
    args.amp = None
    return args


def processor_seconds() -> float:
    """Those of this process and of the compilers that it has called."""
    return sum(os.times()[:4])


def build(name: str, size: tuple[int, int], args: argparse.Namespace) -> tuple[nn.Module, tuple]:
    """A network and what it takes: a neck takes maps, of the size that a backbone makes of such images."""
    if not networks.is_neck(name):
        network = networks.build(name, args.part, size).to(args.device)
        return network, random_inputs(network, args.batch, size, args.device)
    network = networks.build_neck(name).to(args.device)
    strides = (16,) if isinstance(network, SimpleFPN) else (4, 8, 16, 32)
    maps = [torch.randn(args.batch, network.in_channels, *(-(-n // stride) for n in size)) for stride in strides]
    return network, ([x.to(args.device).requires_grad_() for x in maps],)


def measure(name: str, size: tuple[int, int], args: argparse.Namespace) -> dict:
    """Times of both forms of a network, and what compiling took."""
    torch.compiler.reset()
    counters.clear()
    gc.collect()
    torch.manual_seed(0)
    network, inputs = build(name, size, args)
    steps: dict[str, Callable[[], None]] = {}
    for form in ('eager', 'compiled'):
        own = copy.copy(args)
        own.compile = form == 'compiled'
        steps[form] = benchmark.make_step(network, inputs, own)
        before = processor_seconds()
        steps[form]()
        if form == 'eager':
            steps[form]()
            eager = processor_seconds() - before
        else:
            compiling = processor_seconds() - before - eager / 2
    graphs = counters['stats']['unique_graphs']
    times = times_in_turn(steps, args.rounds, args.device, args.clock)
    again = counters['stats']['unique_graphs'] - graphs
    return dict(name=name, size=list(size), graphs=graphs, again=again, compiling=compiling, seconds=times)


def row(result: dict) -> list[str]:
    """Of the table."""
    eager, compiled = (result['seconds'][form] for form in ('eager', 'compiled'))
    ratio = statistics.median(compiled) / statistics.median(eager)
    graphs = f'{result["graphs"]}' + (f' + {result["again"]}' if result['again'] else '')
    times = [reports.milliseconds(eager), reports.milliseconds(compiled)]
    return [result['name'], *times, f'{ratio:.2f}', graphs, f'{max(0, result["compiling"]):.0f}']


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not in the report yet, and write it after each network."""
    args = parse_args(argv)
    torch._inductor.config.compile_threads = 1  # else their compilers' time is not told
    torch._inductor.config.force_disable_caches = True
    report = reports.start(__file__, argv, args)
    done = []
    if args.json and args.json.is_file():
        old = reports.read(args.json)
        done = old['results'] if old['command'] == report['command'] else []
    print('\n'.join(reports.describe(report)), flush=True)
    for size in args.sizes:
        results = []
        for name in args.names:
            known = next((r for r in done if (r['name'], r['size']) == (name, list(size))), None)
            results.append(known or measure(name, size, args))
            print(' | '.join(row(results[-1])), flush=True)
            kept = {(r['name'], *r['size']): r for r in [*done, *results]}
            done = list(kept.values())
            reports.write({**report, 'results': done}, args.json)
        title = f'{args.step}, float32, {args.batch}×3×{"×".join(map(str, size))}'
        reports.add_table(report, title, COLUMNS, [row(result) for result in results])
    reports.write({**report, 'results': done}, args.json)


if __name__ == '__main__':
    main()
