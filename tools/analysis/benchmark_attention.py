"""What the filter of De-focus attention adds to the cost of the operators at its core, side by side in one run.

Causal attention with decay is measured beside torch's fused causal attention, and retention, chunk by chunk, beside
nothing but its matrix products. All have the heads of the base networks, and all take turns.

Example:
    python tools/analysis/benchmark_attention.py --lengths 1024 4096
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mmvisattn.models.backbones.defocus_retnet import CHUNK, chunkwise_retention
from mmvisattn.models.backbones.defocus_vit import blockwise_attention, filtered_attention
from mmvisattn.models.layers import BandpassFilter

import networks  # noqa: F401  first: with it the toolboxes run without a compiled mmcv
import report as reports
import torch
import torch.nn.functional as F
from measure import default_device, parse_count, parse_device, peak_memory, times_in_turn
from torch import Tensor

HEADS, HEAD_DIM = 12, 64


def fused_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """Causal attention without the decay."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def matrix_products(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """The products of retention, without what lies between them; each chunk's state stands for that before it."""
    q, k, v = (F.pad(x, (0, 0, 0, -x.shape[-2] % CHUNK)).unflatten(-2, (-1, CHUNK)) for x in (q, k, v))
    return (q @ k.mT) @ v + q @ (k.mT @ v)


PAIRS = {
    'causal attention': {
        'fused, no decay': fused_attention,
        'with decay': filtered_attention,
        'with decay, block by block': blockwise_attention,
    },
    'retention': {'its matrix products': matrix_products, 'chunk by chunk': chunkwise_retention},
}


def forward(operator: Callable, inputs: Sequence[Tensor]) -> None:
    """One inference."""
    with torch.no_grad():
        operator(*inputs)


def train(operator: Callable, inputs: Sequence[Tensor]) -> None:
    """Result and gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = operator(*inputs)
    torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)  # some have no decay


def compare(args: argparse.Namespace, length: int) -> list[list[str]]:
    """The rows of a table."""
    shape = (args.batch, HEADS, length, HEAD_DIM)
    q, k, v = (torch.randn(shape, device=args.device) for _ in range(3))
    rate = BandpassFilter(HEADS, HEAD_DIM, delta_scale=args.delta_scale).rate().detach().to(args.device)
    inputs = (q * HEAD_DIM**-0.5, k, v, rate)
    rows = []
    for pair, operators in PAIRS.items():
        figures = []
        for step in (forward, train):
            steps = {name: partial(step, operator, inputs) for name, operator in operators.items()}
            memory = {name: peak_memory(run, args.device) for name, run in steps.items()}
            times = times_in_turn(steps, args.rounds, args.device)
            base = statistics.median(times[next(iter(operators))])
            figures.append({
                name: [
                    f'{statistics.median(seconds) * 1e3:.1f} ({min(seconds) * 1e3:.1f}–{max(seconds) * 1e3:.1f})',
                    f'{statistics.median(seconds) / base:.2f}',
                    f'{memory[name]:.0f}',
                ]
                for name, seconds in times.items()
            })  # fmt: skip
        rows += [[f'{pair}: {name}', *figures[0][name], *figures[1][name]] for name in operators]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lengths', type=parse_count, nargs='+', default=(1024, 4096), help='default: 1024 4096')
    parser.add_argument('--batch', type=parse_count, default=1, help='default: 1')
    parser.add_argument('--delta-scale', type=float, default=4.57, help='that of the networks; default: 4.57')
    parser.add_argument('--rounds', type=parse_count, default=9, help='timed rounds; default: 9')
    parser.add_argument('--device', type=parse_device, default=default_device(), help='default: the GPU, if any')
    reports.add_argument(parser)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    report = reports.start('benchmark_attention.py', sys.argv[1:] if argv is None else argv, args.device, args.rounds)
    print('\n'.join(reports.describe(report)))
    passes = [f'{step}{column}' for step in ('forward, ', 'training, ') for column in ('ms (min–max)', 'ratio', 'MiB')]
    for length in args.lengths:
        title = f'{args.batch}×{length} tokens, {HEADS} heads of {HEAD_DIM} channels, float32'
        reports.add_table(report, title, ['operator', *passes], compare(args, length))
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
