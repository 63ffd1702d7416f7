"""Speed and memory of the selective scan, as ratios measured side by side in one run.

Each round runs every candidate once, so that all of them meet the same load of the machine; a time is the smallest of
all rounds. Two baselines are timed with the backends: ``materialising``, which discretises everything into
(B, D, L, N) tensors and then loops over time, and ``time-major loop``, which loops over contiguous time-major data
with the state in place.

Examples:
    python tools/analysis/benchmark_scan.py
    python tools/analysis/benchmark_scan.py --threads 1 --clock cpu  # on a machine that has other things to do
    python tools/analysis/benchmark_scan.py --linearity --backends torch cpu --no-baselines
    python tools/analysis/benchmark_scan.py --device cuda --batch 8 --layout time-major --json scan.json
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmvisattn.ops.selective_scan import available_backends, selective_scan

Scan = Callable[..., Tensor]


def materialising(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Baseline: decays and inputs of all steps at once, then a loop."""
    decay = torch.exp(torch.einsum('bdl,dn->bdln', delta, A))
    added = torch.einsum('bdl,bnl,bdl->bdln', delta, B, u)
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + added[:, :, t]
        y.append(torch.einsum('bdn,bn->bd', h, C[:, :, t]))
    return torch.stack(y, dim=2)


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


BASELINES = {'materialising': materialising, 'time-major loop': time_major_loop}


def make_inputs(args: argparse.Namespace, length: int) -> tuple[list[Tensor], Tensor]:
    """Random inputs of the sizes that a De-focus Mamba gives to its scan, and a gradient of the result."""
    generator = torch.Generator(args.device).manual_seed(0)
    dtype = getattr(torch, args.dtype)

    def sequence(channels: int) -> Tensor:
        x = torch.randn(args.batch, length, channels, generator=generator, device=args.device).transpose(1, 2)
        return x if args.layout == 'time-major' else x.contiguous()

    u, grad_y = sequence(args.dim), sequence(args.dim)
    delta = torch.nn.functional.softplus(sequence(args.dim) - 4)
    A = -torch.arange(1.0, args.state + 1, device=args.device).repeat(args.dim, 1)
    inputs = [u.to(dtype), delta.to(dtype), A, sequence(args.state).to(dtype), sequence(args.state).to(dtype)]
    return inputs, grad_y.to(dtype)


def forward(scan: Scan, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    """One inference."""
    with torch.no_grad():
        return [scan(*inputs)]


def forward_backward(scan: Scan, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    """One training step: result and all five gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = scan(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]


PASSES = {'forward': forward, 'forward+backward': forward_backward}


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == 'cuda':
        torch.cuda.synchronize()


CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def seconds_of(run: Callable[[], object], device: str, clock: str) -> float:
    """Time of one run."""
    synchronize(device)
    start = CLOCKS[clock]()
    run()
    synchronize(device)
    return CLOCKS[clock]() - start


def measure_times(
    runs: dict[str, Callable[[], object]], rounds: int, device: str, clock: str = 'wall'
) -> dict[str, float]:
    """Smallest time of each of several interleaved runs, all of which have run before."""
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            elapsed = seconds_of(run, device, clock)
            if elapsed > 0:  # the clock of a virtual machine that was paused may go back
                times[name].append(elapsed)
    return {name: min(values, default=math.nan) for name, values in times.items()}


def resident(field: str) -> int:
    """Resident memory of this process in bytes, now (VmRSS) or at most (VmHWM)."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f'/proc/self/status has no {field}')


def measure_memory(run: Callable[[], list[Tensor]], device: str) -> int:
    """Peak memory in bytes beyond what there was before and what is returned."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = run()
        peak = torch.cuda.max_memory_allocated()
    else:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
        before = resident('VmRSS')
        results = run()
        peak = resident('VmHWM')
    return peak - before - sum(x.numel() * x.element_size() for x in results)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a device copy of 1 GiB."""
    source = torch.empty(2**28, device='cuda')
    target = torch.empty_like(source)
    best = measure_times({'copy': lambda: target.copy_(source)}, 20, 'cuda')['copy']
    return 2 * source.numel() * source.element_size() / best


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as their widest entry."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f'\n{title}')
    for row in [header, *rows]:
        print('  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))))


def compare(args: argparse.Namespace, scans: dict[str, Scan]) -> list[dict]:
    """Time and memory of all candidates at one size."""
    inputs, grad_y = make_inputs(args, args.length)
    candidates = {**scans, **(BASELINES if args.baselines else {})}
    runs = {(name, 'forward'): partial(forward, scan, inputs, grad_y) for name, scan in candidates.items()}
    if 'forward+backward' in args.passes:
        for name, scan in scans.items():
            runs[name, 'forward+backward'] = partial(forward_backward, scan, inputs, grad_y)
    memory = {key: measure_memory(run, args.device) for key, run in runs.items()}
    times = measure_times(runs, args.rounds, args.device, args.clock)
    size_of_u = inputs[0].numel() * inputs[0].element_size()
    traffic = sum(x.numel() * x.element_size() for x in inputs) + size_of_u
    bandwidth = copy_bandwidth() if args.device == 'cuda' else None

    results = []
    for name in candidates:
        ahead = times[name, 'forward']
        both = times.get((name, 'forward+backward'))
        result = {'name': name, 'forward_ms': 1e3 * ahead}
        for baseline in BASELINES if args.baselines else ():
            result[f'speed-up over {baseline}'] = times[baseline, 'forward'] / ahead
        result['forward peak memory / u'] = memory[name, 'forward'] / size_of_u
        if both:
            result['forward+backward_ms'] = 1e3 * both
            result['forward+backward / forward'] = both / ahead
            result['forward+backward peak memory / u'] = memory[name, 'forward+backward'] / size_of_u
        if bandwidth:
            result['GB/s'] = traffic / ahead / 1e9
            result['fraction of copy'] = traffic / ahead / bandwidth
        results.append(result)
    keys = list(dict.fromkeys(key for result in results for key in result))
    rows = [[result['name'], *(f'{result[k]:.3g}' if k in result else '-' for k in keys[1:])] for result in results]
    print_table(
        f'{args.batch} x {args.dim} x {args.length}, state {args.state}, {args.layout} {args.dtype}', keys, rows
    )
    return results


def linearity(args: argparse.Namespace, scans: dict[str, Scan]) -> list[dict]:
    """Time and memory against the length; 1 is linear growth from the previous length."""
    lengths = [256 * 2**i for i in range(7)]
    results = []
    for name, scan in scans.items():
        for pass_name in args.passes:
            runs, memory = {}, {}
            for length in lengths:
                runs[length] = partial(PASSES[pass_name], scan, *make_inputs(args, length))
                memory[length] = measure_memory(runs[length], args.device)
            times = measure_times(runs, args.rounds, args.device, args.clock)
            results.append({
                'name': name,
                'pass': pass_name,
                'ms': {length: 1e3 * times[length] for length in lengths},
                'memory / u': {
                    length: memory[length] / (args.batch * args.dim * length * getattr(torch, args.dtype).itemsize)
                    for length in lengths
                },
                'exponent of time': math.log(times[lengths[-1]] / times[lengths[0]], lengths[-1] / lengths[0]),
            })  # fmt: skip
    header = ['', *map(str, lengths), 'exponent']
    rows = []
    for r in results:
        label = f'{r["name"]} {r["pass"]}'
        per_step = [f'{1e3 * r["ms"][length] / length:.3g}' for length in lengths]
        rows.append([f'{label}, µs per step', *per_step, f'{r["exponent of time"]:.2f}'])
        rows.append([f'{label}, peak memory / u', *(f'{r["memory / u"][length]:.2f}' for length in lengths), ''])
    print_table(f'Growth with the length ({args.batch} x {args.dim} x L, state {args.state})', header, rows)
    return results


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=1, help='batch size')
    parser.add_argument('--dim', type=int, default=1536, help='channels D')
    parser.add_argument('--length', type=int, default=4097, help='steps L')
    parser.add_argument('--state', type=int, default=16, help='state entries N of a channel')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'float64', 'bfloat16', 'float16'])
    parser.add_argument('--layout', default='channel-major', choices=['channel-major', 'time-major'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--backends', nargs='+', help='defaults to all that can run on the device')
    parser.add_argument('--passes', nargs='+', default=list(PASSES), choices=list(PASSES))
    parser.add_argument('--no-baselines', dest='baselines', action='store_false', help='time the backends alone')
    parser.add_argument('--linearity', action='store_true', help='also measure lengths from 256 to 16384')
    parser.add_argument('--rounds', type=int, default=5, help='rounds of which the smallest time counts')
    parser.add_argument('--threads', type=int, help='CPU threads; by default as many as torch takes')
    parser.add_argument(
        '--clock',
        default='wall',
        choices=list(CLOCKS),
        help="'cpu' counts the processor time of all threads, which other processes hardly disturb; with --threads 1",
    )
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    reasons = available_backends()
    here = {'cpu': ['torch', 'cpu'], 'cuda': ['torch', 'triton', 'mamba_ssm']}[args.device]
    for name in args.backends or here:
        if reasons.get(name):
            print(f'{name} is left out: {reasons[name]}')
    names = args.backends or [name for name in here if reasons[name] is None]
    scans = {name: partial(selective_scan, backend=name) for name in names}
    device = torch.cuda.get_device_name() if args.device == 'cuda' else f'{torch.get_num_threads()} threads'
    print(f'torch {torch.__version__}, {platform.machine()}, {device}, {args.clock} time')
    report = {'arguments': {k: str(v) for k, v in vars(args).items()}, 'comparison': compare(args, scans)}
    if args.linearity:
        report['linearity'] = linearity(args, scans)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == '__main__':
    main()
