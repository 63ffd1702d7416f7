"""Time and memory of the selective scan by each of its backends, side by side in one run.

The backends take turns with two baselines: ``materialising``, which discretises everything into (B, D, L, N) and then
loops over time, and ``time-major loop``, which goes over contiguous steps with the state in place and has no backward.
Times are medians with minimum and maximum of all rounds. Memory is the peak beyond inputs and results, in sizes of the
input u.

Examples:
    python tools/analysis/benchmark_scan.py
    python tools/analysis/benchmark_scan.py --growth
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mmvisattn.ops.selective_scan import available_backends, selective_scan

import networks  # noqa: F401  first: with it the toolboxes run without a compiled mmcv
import numpy as np
import report as reports
import torch
from measure import default_device, parse_count, parse_device, peak_memory, times_in_turn
from references import materialising_scan
from torch import Tensor

Scan = Callable[..., Tensor]
ON_DEVICE = {'cpu': ('torch', 'cpu'), 'cuda': ('torch', 'triton', 'mamba_ssm')}
GROWTH_LENGTHS = [256 * 2**i for i in range(7)]


@torch.no_grad()
def time_major_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Baseline: a loop over contiguous steps, the state in place; forward alone."""
    u, delta, B, C = (x.permute(2, 0, 1).contiguous() for x in (u, delta, B, C))
    x = delta * u
    h = u.new_zeros(u.shape[1], *A.shape)
    decay = torch.empty_like(h)
    y = torch.empty_like(u)
    for t in range(len(u)):
        torch.mul(delta[t].unsqueeze(2), A, out=decay).exp_()
        h.mul_(decay).addcmul_(x[t].unsqueeze(2), B[t].unsqueeze(1))
        torch.bmm(h, C[t].unsqueeze(2), out=y[t].unsqueeze(2))
    return y.permute(1, 2, 0)


def make_inputs(args: argparse.Namespace, length: int) -> tuple[list[Tensor], Tensor]:
    """Random inputs of the sizes that a De-focus Mamba gives to its scan, and a gradient of the result."""
    generator = torch.Generator(args.device).manual_seed(0)

    def sequence(channels: int) -> Tensor:
        return torch.randn(args.batch, channels, length, generator=generator, device=args.device)

    u, grad_y = sequence(args.dim), sequence(args.dim)
    delta = torch.nn.functional.softplus(sequence(args.dim) - 4)
    A = -torch.arange(1.0, args.state + 1, device=args.device).repeat(args.dim, 1)
    return [u, delta, A, sequence(args.state), sequence(args.state)], grad_y


def forward(scan: Scan, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    """One inference."""
    with torch.no_grad():
        return [scan(*inputs)]


def train(scan: Scan, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    """One training step: result and all five gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = scan(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]


STEPS = {'forward': forward, 'forward + backward': train}


def memory_of(step: Callable[[], list[Tensor]], u: Tensor, device: torch.device) -> float:
    """Peak memory beyond what is returned, in sizes of u."""
    results = step()
    returned = sum(x.numel() * x.element_size() for x in results)
    del results
    return (peak_memory(step, device) * 2**20 - returned) / (u.numel() * u.element_size())


def compare(args: argparse.Namespace, scans: dict[str, Scan], report: dict) -> None:
    """Time and memory of backends and baselines at one length."""
    inputs = make_inputs(args, args.length)
    baselines = {'time-major loop': time_major_loop, 'materialising': materialising_scan}
    for title, step in STEPS.items():
        rivals = scans | (baselines if step is forward else {})
        steps = {name: partial(step, scan, *inputs) for name, scan in rivals.items()}
        memory = {name: memory_of(run, inputs[0][0], args.device) for name, run in steps.items()}
        times = times_in_turn(steps, args.rounds, args.device)
        slowest = max(times, key=lambda name: statistics.median(times[name]))
        rows = []
        for name, seconds in times.items():
            median = statistics.median(seconds)
            spread = f'{median * 1e3:.1f} ({min(seconds) * 1e3:.1f}–{max(seconds) * 1e3:.1f})'
            rows.append([name, spread, f'{statistics.median(times[slowest]) / median:.1f}×', f'{memory[name]:.2f} u'])
        reports.add_table(
            report,
            f'{title}, {args.batch}×{args.dim}×{args.length}, state {args.state}, float32',
            ['backend', 'ms (min–max)', f'speed-up over {slowest}', 'peak memory'],
            rows,
        )


def grow(args: argparse.Namespace, scans: dict[str, Scan], report: dict) -> None:
    """Time and memory against the length, and the exponent of time."""
    rows = []
    for title, step in STEPS.items():
        for name, scan in scans.items():
            steps = {length: partial(step, scan, *make_inputs(args, length)) for length in GROWTH_LENGTHS}
            memory = [memory_of(steps[length], make_inputs(args, length)[0][0], args.device) for length in steps]
            times = times_in_turn(steps, args.rounds, args.device)
            seconds = [statistics.median(times[length]) for length in GROWTH_LENGTHS]
            exponent = np.polyfit(np.log(GROWTH_LENGTHS), np.log(seconds), 1)[0]
            cells = [
                f'{1e6 * second / length:.2f}, {u:.2f} u' for second, length, u in zip(seconds, GROWTH_LENGTHS, memory)
            ]
            rows.append([f'{name}, {title}', *cells, f'{exponent:.2f}'])
    reports.add_table(
        report,
        f'Microseconds a step of the sequence, and peak memory, {args.batch}×{args.dim}×L, state {args.state}',
        ['L', *map(str, GROWTH_LENGTHS), 'exponent of time'],
        rows,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=parse_count, default=1, help='batch size; default: 1')
    parser.add_argument('--dim', type=parse_count, default=1536, help='channels D; default: 1536')
    parser.add_argument('--length', type=parse_count, default=4097, help='steps L; default: 4097')
    parser.add_argument('--state', type=parse_count, default=16, help='state entries N of a channel; default: 16')
    parser.add_argument('--growth', action='store_true', help='lengths from 256 to 16384, without the baselines')
    parser.add_argument('--rounds', type=parse_count, default=5, help='timed rounds; default: 5')
    parser.add_argument('--device', type=parse_device, default=default_device(), help='default: the GPU, if any')
    reports.add_argument(parser)
    args = parser.parse_args(argv)

    reasons = available_backends()
    names = ON_DEVICE[args.device.type]
    for name in names:
        if reasons[name]:
            print(f'{name} is left out: {reasons[name]}')
    scans = {name: partial(selective_scan, backend=name) for name in names if not reasons[name]}
    report = reports.start('benchmark_scan.py', sys.argv[1:] if argv is None else argv, args.device, args.rounds)
    print('\n'.join(reports.describe(report)))
    (grow if args.growth else compare)(args, scans, report)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
