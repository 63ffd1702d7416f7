"""What threads that wait cost: training steps by themselves and beside a second process, by the policy of waiting.

Each measurement is one process, or two at once, with as many threads as there are cores, that train for some seconds.
The policies take turns, so that a noisy machine hits all alike; times are those of a step, medians over all rounds with
their minimum and maximum. With two processes there is twice the work to do, so twice the time is what sharing costs.
`mmvisattn` has threads `spin shortly` where a user has set nothing.

Example:
    python tools/analysis/busy.py --rounds 5
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.testing import random_inputs

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.analysis import networks
from tools.analysis.measure import parse_count, parse_size
from tools.driver import ROOT

# What libgomp, which torch brings on Linux, reads as it is loaded.
POLICIES = {
    'spin, as libgomp does by itself': {},
    'spin shortly': dict(GOMP_SPINCOUNT='10000'),
    'sleep': dict(OMP_WAIT_POLICY='PASSIVE'),
}
SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'MMVISATTN_THREADS')


def train(name: str, size: tuple[int, int], seconds: float) -> None:
    """In a process of its own: train, from a line of the input on, and print the seconds of each step."""
    torch.manual_seed(0)
    network = networks.build(name, 'backbone', size).train()
    (images, *_) = random_inputs(network, 1, size, torch.device('cpu'))

    def step() -> None:
        outs = network(images)
        sum(out.square().mean() for out in outs).backward()
        network.zero_grad()

    for _ in range(2):
        step()
    print('ready', flush=True)
    sys.stdin.readline()
    end, times = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    print(*times, flush=True)


def measure(args: argparse.Namespace, policy: dict[str, str], processes: int) -> float:
    """Median seconds of a step, of so many processes that train at once."""
    env = {key: value for key, value in os.environ.items() if key not in SETTINGS} | {'MMVISATTN_THREADS': 'off'}
    height, width = args.size
    words = [sys.executable, __file__, args.network, '--size', f'{height}x{width}', '--train', str(args.seconds)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    children = [subprocess.Popen(words, env=env | policy, **pipes) for _ in range(processes)]
    for child in children:
        if child.stdout.readline() != 'ready\n':
            raise UserError(f'{args.network!r} cannot be trained here; what its process said stands above')
    for child in children:
        child.stdin.write('go\n')
        child.stdin.flush()
    outs = [child.communicate()[0] for child in children]
    return statistics.median(float(word) for out in outs for word in out.split())


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('network', nargs='?', default='FCViT:b12', help=networks.NAMES)
    parser.add_argument('--size', type=parse_size, default=(224, 224), metavar='HxW', help='default: 224x224')
    parser.add_argument('--seconds', type=parse_count, default=5, help='of a measurement; default: 5')
    parser.add_argument('--train', type=float, help=argparse.SUPPRESS)
    reports.add_arguments(parser, rounds=5)
    args = parser.parse_args(argv)
    if args.train is not None:
        train(args.network, args.size, args.train)
        return
    load = os.getloadavg()[0]
    times = {(policy, processes): [] for policy in POLICIES for processes in (1, 2)}
    for _ in range(args.rounds):
        for policy, processes in times:
            times[policy, processes].append(measure(args, POLICIES[policy], processes))
    first = next(iter(POLICIES))
    rows = []
    for policy in POLICIES:
        row = [policy]
        for processes in (1, 2):
            ratio = statistics.median(times[policy, processes]) / statistics.median(times[first, processes])
            row += [reports.milliseconds(times[policy, processes]), f'{ratio:.2f}']
        rows.append(row)
    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    size = '×'.join(map(str, args.size))
    title = f'{args.network}, a training step, 1×3×{size}; load of the machine before: {load:.1f}'
    columns = ['threads that wait', 'one process, ms (min–max)', 'ratio', 'two at once, ms (min–max)', 'ratio']
    reports.add_table(report, title, columns, rows)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
