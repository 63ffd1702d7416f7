"""Time and memory of the operators at the core of the networks, each beside what it competes with, in one run.

- attention: causal attention with decay beside torch's fused attention without it, and retention, chunk by chunk,
  beside nothing but its matrix products; with the heads of the base networks.
- depthwise: how much faster than torch's own convolution, `native`, the backends of the depthwise convolution train;
  above one, they are faster. The sizes are those of the stages of FCViT for an image of 512 × 512, and smaller ones of
  a batch of eight.
- scan: the backends of the selective scan beside `materialising`, which discretises everything into (B, D, L, N) and
  then loops over time, and `time-major loop`, which goes over contiguous steps with the state in place and has no
  backward. Memory is the peak beyond inputs and results, in sizes of the input u.
- scan-growth: the backends of the selective scan alone, over lengths.

What is compared takes turns, A B A B …, so that a noisy machine hits all alike; times are medians with minimum and
maximum of all rounds, ratios are of medians.

Example:
    python tools/analysis/benchmark_operators.py scan --rounds 5
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmvisattn.models.layers import BandpassFilter
from mmvisattn.ops import depthwise_conv, selective_scan
from mmvisattn.ops.filtered_attention import blockwise_attention, filtered_attention
from mmvisattn.ops.retention import CHUNK, chunkwise_retention
from mmvisattn.testing import materialising_scan

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.analysis.measure import exponent, peak_memory, times_in_turn

Operator = Callable[..., Tensor]
Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def forward(operator: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One inference."""
    with torch.no_grad():
        return [operator(*inputs)]


def train(operator: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One training step: result and gradients, from a gradient that is the result."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = operator(*inputs)
    grads = torch.autograd.grad(out, inputs, out.detach(), allow_unused=True)  # some have no decay
    return [out.detach(), *(grad for grad in grads if grad is not None)]


# Attention

LENGTHS = (1024, 4096)
HEADS, HEAD_DIM = 12, 64
DELTA_SCALE = 4.57  # that of the networks


def fused_attention(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """Causal attention without the decay."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def matrix_products(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """The products of retention, without what lies between them; each chunk's state stands for that before it."""
    q, k, v = (F.pad(x, (0, 0, 0, -x.shape[-2] % CHUNK)).unflatten(-2, (-1, CHUNK)) for x in (q, k, v))
    return (q @ k.mT) @ v + q @ (k.mT @ v)


# What ratios are taken to comes first.
ATTENTION = {
    'causal attention': {
        'fused, no decay': fused_attention,
        'with decay': filtered_attention,
        'with decay, block by block': blockwise_attention,
    },
    'retention': {'its matrix products': matrix_products, 'chunk by chunk': chunkwise_retention},
}


def attention(args: argparse.Namespace) -> Iterator[Table]:
    """A table for each length."""
    columns = [f'{step}, {column}' for step in ('forward', 'training') for column in ('ms (min–max)', 'ratio', 'MiB')]
    for length in LENGTHS:
        q, k, v = torch.randn(3, 1, HEADS, length, HEAD_DIM, device=args.device)
        rate = BandpassFilter(HEADS, HEAD_DIM, delta_scale=DELTA_SCALE).rate().detach().to(args.device)
        inputs = (q * HEAD_DIM**-0.5, k, v, rate)
        rows = {}
        for group, operators in ATTENTION.items():
            for step in (forward, train):
                steps = {f'{group}: {name}': partial(step, operator, inputs) for name, operator in operators.items()}
                memory = [peak_memory(run, args.device) for run in steps.values()]
                times = times_in_turn(steps, args.rounds, args.device, args.clock)
                base = statistics.median(next(iter(times.values())))
                for (name, seconds), mib in zip(times.items(), memory):
                    ratio = statistics.median(seconds) / base
                    rows.setdefault(name, [name]).extend([reports.milliseconds(seconds), f'{ratio:.2f}', f'{mib:.0f}'])
        title = f'1×{length} tokens, {HEADS} heads of {HEAD_DIM} channels, float32'
        yield title, ['operator', *columns], list(rows.values())


# Depthwise convolution

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
KERNELS = (3, 5, 7, 11)


def depthwise(args: argparse.Namespace) -> Iterator[Table]:
    """A table with a row for each size and layout."""
    usable = [name for name, reason in depthwise_conv.available_backends().items() if reason is None]
    others = [name for name in usable if name != 'native' and (name != 'triton' or args.device.type == 'cuda')]
    rows = []
    for size in SIZES:
        for layout, memory_format in LAYOUTS.items():
            row = ['×'.join(map(str, size)), layout]
            for kernel in KERNELS:
                steps = depthwise_steps(size, kernel, memory_format, ['native', *others], args.device)
                times = times_in_turn(steps, args.rounds, args.device, args.clock)
                native, *rivals = (statistics.median(seconds) for seconds in times.values())
                row += [f'{native / rival:.2f}' for rival in rivals]
            rows.append(row)
    columns = [f'{kernel}×{kernel} {name}' for kernel in KERNELS for name in others]
    yield 'Forward and backward, float32: time of native over time of', ['size', 'layout', *columns], rows


def depthwise_steps(
    size: Sequence[int], kernel: int, layout: torch.memory_format, backends: Sequence[str], device: torch.device
) -> dict[str, Callable[[], object]]:
    """A training step by each backend."""
    x = torch.randn(size, device=device).contiguous(memory_format=layout)
    weight = torch.randn(size[1], 1, kernel, kernel, device=device)
    inputs = (x, weight, torch.randn(size[1], device=device))
    convolve = partial(depthwise_conv.depthwise_conv2d, padding=kernel // 2)
    return {name: partial(train, partial(convolve, backend=name), inputs) for name in backends}


# Selective scan

SCAN_BACKENDS = {'cpu': ('torch', 'cpu'), 'cuda': ('torch', 'triton', 'mamba_ssm')}
SCAN_STEPS = {'forward': forward, 'forward + backward': train}
SCAN_DIM, SCAN_STATE, SCAN_LENGTH = 1536, 16, 4097
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


def scan_inputs(batch: int, length: int, device: torch.device, dim: int = SCAN_DIM) -> list[Tensor]:
    """Random inputs of the sizes that a De-focus Mamba gives to its scan."""
    generator = torch.Generator(device).manual_seed(0)
    u, delta, B, C = (
        torch.randn(batch, channels, length, generator=generator, device=device)
        for channels in (dim, dim, SCAN_STATE, SCAN_STATE)
    )
    A = -torch.arange(1.0, SCAN_STATE + 1, device=device).repeat(dim, 1)
    return [u, F.softplus(delta - 4), A, B, C]


def scan_memory(step: Callable[[], list[Tensor]], u: Tensor) -> float:
    """Peak memory beyond what is returned, in sizes of u."""
    results = step()
    returned = sum(x.nbytes for x in results)
    del results
    return (peak_memory(step, u.device) * 2**20 - returned) / u.nbytes


def usable_scans(device: torch.device) -> dict[str, Operator]:
    """The scan by each backend that can run; the others are named."""
    scans = {}
    for name in SCAN_BACKENDS[device.type]:
        reason = selective_scan.available_backends()[name]
        if reason:
            print(f'{name} is left out: {reason}')
        else:
            scans[name] = partial(selective_scan.selective_scan, backend=name)
    return scans


def scan(args: argparse.Namespace) -> Iterator[Table]:
    """A table of inference and one of training."""
    scans, inputs = usable_scans(args.device), scan_inputs(1, SCAN_LENGTH, args.device)
    baselines = {'time-major loop': time_major_loop, 'materialising': materialising_scan}
    for title, step in SCAN_STEPS.items():
        rivals = scans | (baselines if step is forward else {})
        steps = {name: partial(step, rival, inputs) for name, rival in rivals.items()}
        memory = {name: scan_memory(run, inputs[0]) for name, run in steps.items()}
        times = times_in_turn(steps, args.rounds, args.device, args.clock)
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        slowest = max(medians, key=medians.get)
        rows = [
            [name, reports.milliseconds(seconds), f'{medians[slowest] / medians[name]:.1f}×', f'{memory[name]:.2f} u']
            for name, seconds in times.items()
        ]
        columns = ['backend', 'ms (min–max)', f'speed-up over {slowest}', 'peak memory']
        yield f'{title}, 1×{SCAN_DIM}×{SCAN_LENGTH}, state {SCAN_STATE}, float32', columns, rows


def scan_growth(args: argparse.Namespace) -> Iterator[Table]:
    """Time and memory against the length, and the exponent of time."""
    rows = []
    inputs = {length: scan_inputs(1, length, args.device) for length in GROWTH_LENGTHS}
    scans = usable_scans(args.device)
    for title, step in SCAN_STEPS.items():
        for name, operator in scans.items():
            steps = {length: partial(step, operator, tensors) for length, tensors in inputs.items()}
            memory = [scan_memory(steps[length], tensors[0]) for length, tensors in inputs.items()]
            times = times_in_turn(steps, args.rounds, args.device, args.clock)
            medians = [statistics.median(seconds) for seconds in times.values()]
            cells = [f'{1e6 * s / length:.2f}, {u:.2f} u' for s, length, u in zip(medians, GROWTH_LENGTHS, memory)]
            rows.append([f'{name}, {title}', *cells, f'{exponent(GROWTH_LENGTHS, medians):.2f}'])
    title = f'Microseconds a step of the sequence, and peak memory, 1×{SCAN_DIM}×L, state {SCAN_STATE}'
    yield title, ['L', *map(str, GROWTH_LENGTHS), 'exponent of time'], rows


CASES = {'attention': attention, 'depthwise': depthwise, 'scan': scan, 'scan-growth': scan_growth}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a case and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('case', choices=CASES)
    reports.add_arguments(parser)
    reports.add_clock(parser)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    for table in CASES[args.case](args):
        reports.add_table(report, *table)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
