"""What `torch.compile` gives and costs: each network eager and compiled in turn, and how long compiling took.

Without names: the backbones, the necks, which get maps of the size that a backbone makes of such images, and the small
detectors and segmentors of `configs/mini`. Of these backbone and neck are compiled, as by `mmvisattn.CompileHook`. A
training step is forward, loss and backward. Steps are timed as in `benchmark.py`; compiling is told in seconds of the
processor, its compilers included, with one of them at a time. A backbone or a neck has one graph for one size of
images; how many serve six sizes is counted without generating code for them. With `--json`, what the file holds already
is not measured again, so that a run that was stopped goes on.

Example:
    python tools/analysis/compiled.py FCViT:tiny SimpleFPN:in_channels=384 --step train --sizes 224x224
"""

import argparse
import copy
import gc
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.engine.compile_hook import compile_parts
from mmvisattn.models.necks import FlexAttentionNeck, SimpleFPN
from mmvisattn.testing import random_inputs

import torch
from mmengine.model import BaseModel
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
# Of the height and the width of the images, whose graphs are counted.
SCALES = ((1, 1), (1, 1.5), (1.5, 1), (0.75, 1.25), (1.25, 2), (2, 1.25))
STRIDE = 32  # what the toolboxes pad images to
COLUMNS = ['network', 'eager, ms (min–max)', 'compiled, ms (min–max)', 'compiled / eager']
COLUMNS += ['graphs', 'for six sizes', 'compiling, s']


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
    args.amp, args.compile = None, False  # the step does not compile; the network is compiled
    return args


def processor_seconds() -> float:
    """Those of this process and of the compilers that it has called."""
    return sum(os.times()[:4])


def build(name: str, size: tuple[int, int], args: argparse.Namespace) -> nn.Module:
    """A network, or a neck alone."""
    network = networks.build_neck(name) if networks.is_neck(name) else networks.build(name, args.part, size)
    return network.to(args.device)


def make_inputs(network: nn.Module, size: tuple[int, int], args: argparse.Namespace) -> tuple:
    """What a network takes: a neck takes maps, of the size that a backbone makes of such images."""
    if not isinstance(network, SimpleFPN | FlexAttentionNeck):
        return random_inputs(network, args.batch, size, args.device)
    strides = (16,) if isinstance(network, SimpleFPN) else (4, 8, 16, 32)
    maps = [torch.randn(args.batch, network.in_channels, *(-(-n // stride) for n in size)) for stride in strides]
    return ([x.to(args.device).requires_grad_() for x in maps],)


def compile_anew(network: nn.Module, **options: str) -> None:
    """Have a network compiled when it is first called, of a detector or segmentor backbone and neck."""
    torch.compiler.reset()
    counters.clear()
    if isinstance(network, BaseModel):
        compile_parts(network, **options)
    else:
        network.compile(**options)


def graphs_of_sizes(network: nn.Module, size: tuple[int, int], args: argparse.Namespace) -> int:
    """How many graphs serve six sizes of images."""
    compile_anew(network, backend='aot_eager')
    for scales in SCALES:
        images = tuple(math.ceil(n * scale / STRIDE) * STRIDE for n, scale in zip(size, scales))
        benchmark.make_step(network, make_inputs(network, images, args), args)()
    return counters['stats']['unique_graphs']


def measure(name: str, size: tuple[int, int], args: argparse.Namespace) -> dict:
    """Times of both forms of a network, and what compiling took."""
    gc.collect()
    torch.manual_seed(0)
    eager = build(name, size, args)
    compiled = copy.deepcopy(eager)
    many = graphs_of_sizes(compiled, size, args)
    compile_anew(compiled)
    inputs = make_inputs(eager, size, args)
    forms = dict(eager=eager, compiled=compiled)
    steps = {form: benchmark.make_step(network, inputs, args) for form, network in forms.items()}
    seconds = {}
    for form, times in dict(eager=2, compiled=1).items():
        for _ in range(times):  # the first eager step may build an operator
            before = processor_seconds()
            steps[form]()
            seconds[form] = processor_seconds() - before
    graphs = counters['stats']['unique_graphs']
    times = times_in_turn(steps, args.rounds, args.device, args.clock)
    return dict(
        name=name,
        size=list(size),
        graphs=graphs,
        again=counters['stats']['unique_graphs'] - graphs,
        many=many,
        compiling=seconds['compiled'] - seconds['eager'],
        seconds=times,
    )


def row(result: dict) -> list[str]:
    """Of the table."""
    eager, compiled = (result['seconds'][form] for form in ('eager', 'compiled'))
    ratio = statistics.median(compiled) / statistics.median(eager)
    graphs = f'{result["graphs"]}' + (f' + {result["again"]}' if result['again'] else '')
    times = [reports.milliseconds(eager), reports.milliseconds(compiled)]
    return [result['name'], *times, f'{ratio:.2f}', graphs, str(result['many']), f'{max(0, result["compiling"]):.0f}']


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
