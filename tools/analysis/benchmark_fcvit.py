"""Time FCViT against the plain formulation of the same maths, side by side in one run.

The reference (tests/models/backbones/fcvit_reference.py) computes formula by formula in NCHW with torch's own
operators; both share their parameters. The variants are timed in turn, A B C A B C …, so that a noisy machine hits all
alike; the ratios are of medians.

Example:
    python tools/analysis/benchmark_fcvit.py --arch b12 --size 512 512
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the reference lives with the tests

from mmvisattn.models.backbones import FCViT
from tests.models.backbones.fcvit_reference import Reference


class ChannelsLast(nn.Module):
    """The reference fed in NHWC: what the memory format alone gives.

    Args:
        reference: The reference.
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.reference = reference

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the reference."""
        return self.reference(x.contiguous(memory_format=torch.channels_last))


def forward(network: nn.Module, x: Tensor) -> None:
    """Inference."""
    with torch.no_grad():
        network(x)


def forward_backward(network: nn.Module, x: Tensor) -> None:
    """A training step without the optimizer."""
    for parameter in network.parameters():
        parameter.grad = None
    sum(out.square().mean() for out in network(x)).backward()


def seconds(step: Callable, network: nn.Module, x: Tensor) -> float:
    """The time that one step takes."""
    start = time.perf_counter()
    step(network, x)
    return time.perf_counter() - start


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='b12', choices=list(FCViT.arch_settings), help='default: b12')
    parser.add_argument('--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'), help='default: 512 512')
    parser.add_argument('--batch', type=int, default=1, help='default: 1')
    parser.add_argument('--rounds', type=int, default=9, help='timed rounds; default: 9')
    parser.add_argument('--compile', action='store_true', help='time torch.compile of both as well')
    args = parser.parse_args()

    torch.manual_seed(0)
    network = FCViT(args.arch, layer_scale_init_value=0.5)
    reference = Reference(network)
    variants = {'reference, NCHW': reference, 'reference, NHWC': ChannelsLast(reference), 'mmvisattn': network}
    if args.compile:
        variants['reference, NCHW, compiled'] = torch.compile(reference)
        variants['mmvisattn, compiled'] = torch.compile(network)
    x = torch.randn(args.batch, 3, *args.size)

    print(f'FCViT-{args.arch}, {args.batch}×3×{args.size[0]}×{args.size[1]}, float32')
    print(f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}')
    for step in (forward, forward_backward):
        for variant in variants.values():
            variant.train(step is forward_backward)
        for _ in range(2):  # warm-up
            for variant in variants.values():
                step(variant, x)
        times = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, variant in variants.items():
                times[name].append(seconds(step, variant, x))
        base = statistics.median(times['reference, NCHW'])
        print(f'\n{step.__name__:<26}median ms      min      max    speed-up')
        for name, values in times.items():
            median = statistics.median(values)
            low, high = min(values), max(values)
            print(f'{name:<26}{median * 1e3:9.0f}{low * 1e3:9.0f}{high * 1e3:9.0f}{base / median:11.2f}×')
    network.eval()
    with torch.no_grad():
        errors = [(a - b).abs().max().item() for a, b in zip(network(x), reference(x))]
    print(f'\nlargest difference of an output: {max(errors):.1e}')


if __name__ == '__main__':
    main()
