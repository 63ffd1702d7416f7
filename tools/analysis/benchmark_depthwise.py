"""How much faster than torch's own the backends of the depthwise convolution train, side by side in one run.

Each figure is the time of a forward and a backward by ``native`` divided by that of another backend: above one, the
other one is faster. The backends are timed in turn, A B A B …, so that a noisy machine hits all alike; the ratios are
of medians. The sizes are those of the stages of FCViT for an image of 512 × 512, and smaller ones of a batch of eight.

Example:
    python tools/analysis/benchmark_depthwise.py --kernels 3 11 --rounds 20
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mmvisattn.ops.depthwise_conv import available_backends, depthwise_conv2d

import networks  # noqa: F401  first: with it the toolboxes run without a compiled mmcv
import report as reports
import torch
from measure import default_device, parse_count, parse_device, times_in_turn

SIZES = [
    # batch, channels, height, width
    (1, 64, 128, 128),
    (1, 128, 64, 64),
    (1, 320, 32, 32),
    (1, 512, 16, 16),
    (8, 32, 32, 40),
    (8, 64, 16, 20),
    (8, 96, 8, 10),
    (8, 128, 4, 5),
]
LAYOUTS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}


def rivals(device: torch.device) -> list[str]:
    """The backends that run on a device, without ``native``."""
    names = [name for name, reason in available_backends().items() if reason is None and name != 'native']
    return [name for name in names if name != 'triton' or device.type == 'cuda']


def make_step(
    size: Sequence[int], kernel: int, layout: torch.memory_format, device: torch.device
) -> Callable[[str], None]:
    """A forward and a backward of random inputs, by the name of a backend."""
    channels = size[1]
    x = torch.randn(size, device=device).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, device=device, requires_grad=True)
    bias = torch.randn(channels, device=device, requires_grad=True)

    def step(backend: str) -> None:
        out = depthwise_conv2d(x, weight, bias, kernel // 2, backend=backend)
        torch.autograd.grad(out, (x, weight, bias), out.detach())

    return step


def ratios(args: argparse.Namespace, size: Sequence[int], kernel: int, layout: torch.memory_format) -> list[float]:
    """Time by ``native`` over that by each rival."""
    step = make_step(size, kernel, layout, args.device)
    steps = {name: partial(step, name) for name in ('native', *rivals(args.device))}
    times = times_in_turn(steps, args.rounds, args.device)
    native, *others = (statistics.median(values) for values in times.values())
    return [native / other for other in others]


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--kernels', type=parse_count, nargs='+', default=(3, 5, 7, 11), help='odd sides; default: 3 5 7 11'
    )
    parser.add_argument('--rounds', type=parse_count, default=9, help='timed rounds; default: 9')
    parser.add_argument('--device', type=parse_device, default=default_device(), help='default: the GPU, if any')
    reports.add_argument(parser)
    args = parser.parse_args(argv)
    if any(kernel % 2 == 0 for kernel in args.kernels):
        parser.error(f'--kernels are odd, so that a map keeps its size; got {args.kernels}')

    torch.manual_seed(0)
    report = reports.start('benchmark_depthwise.py', sys.argv[1:] if argv is None else argv, args.device, args.rounds)
    print('\n'.join(reports.describe(report)))
    columns = [f'{kernel}×{kernel} {name}' for kernel in args.kernels for name in rivals(args.device)]
    rows = []
    for size in SIZES:
        for name, layout in LAYOUTS.items():
            row = [ratio for kernel in args.kernels for ratio in ratios(args, size, kernel, layout)]
            rows.append(['×'.join(map(str, size)), name, *(f'{ratio:.2f}' for ratio in row)])
    title = 'Forward and backward, float32: time of native over time of'
    reports.add_table(report, title, ['size', 'layout', *columns], rows)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
