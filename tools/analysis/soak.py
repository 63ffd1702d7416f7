"""Train, validate and save without end for a while, and see whether memory or open files grow.

One training of tools/train.py validates and saves every few iterations. After each of these cycles the memory of the
process (resident, MiB) and the number of its open files are noted. The first third is left out as the time in which
caches fill; the exit status is 1 where the last third has more open files than the second, or more memory by more than
--tolerance.

Examples:
    python tools/analysis/soak.py configs/mini/fcvit-mini_fpn_ade20k.py --minutes 120
"""

import argparse
import contextlib
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from mmvisattn import cli
from mmvisattn.errors import UserError

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from tools import train

CYCLES: list[tuple[float, float, int]] = []  # seconds since the start, MiB, open files
MIN_CYCLES = 6
PAGE = 4096  # bytes


@HOOKS.register_module()
class SoakHook(Hook):
    """Notes memory and open files after each validation, and ends the training when the time is over.

    Args:
        minutes (float): How long the training lasts.
        quiet (int): Cycles between two printed lines.
    """

    priority = 'LOWEST'

    def __init__(self, minutes: float, quiet: int = 10) -> None:
        self.start = time.monotonic()
        self.seconds = 60 * minutes
        self.quiet = quiet

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Note them, and print every few cycles."""
        gc.collect()
        memory = int(Path('/proc/self/statm').read_text().split()[1]) * PAGE / 2**20
        files = sum(1 for _ in Path('/proc/self/fd').iterdir())
        CYCLES.append((time.monotonic() - self.start, memory, files))
        if len(CYCLES) % self.quiet == 1:
            print(f'{len(CYCLES):6} cycles, {CYCLES[-1][0]:7.0f} s: {memory:.0f} MiB, {files} open files', flush=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Stop when the time is over and there are cycles enough to compare."""
        if time.monotonic() - self.start > self.seconds and len(CYCLES) >= MIN_CYCLES:
            runner.train_loop._max_iters = runner.iter + 1  # mmengine has no other end for a loop by iteration


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train, print what was noted, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config file whose training goes by iteration')
    parser.add_argument('--minutes', type=float, default=120, help='how long (default: 120)')
    parser.add_argument('--interval', type=int, default=10, help='iterations from one cycle to the next (default: 10)')
    parser.add_argument('--tolerance', type=float, default=0.03, help='share that memory may grow by (default: 0.03)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as of tools/train.py')
    args = parser.parse_args(argv)
    if not Path('/proc/self/statm').exists():
        raise UserError('memory and open files are read from /proc, which this system does not have; use Linux')
    if 'max_iters' not in cli.load_config(str(args.config)).train_cfg:
        raise UserError(f'{str(args.config)!r} trains by epoch; give a config with `train_cfg.max_iters`')
    CYCLES.clear()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, 'soak.py')
        config.write_text(
            f'_base_ = {str(args.config.resolve())!r}\n'
            f"custom_hooks = [*_base_.get('custom_hooks', []), dict(type='SoakHook', minutes={args.minutes})]\n"
        )
        options = [
            *('train_cfg.max_iters=1000000', f'train_cfg.val_interval={args.interval}'),
            *(f'default_hooks.checkpoint.interval={args.interval}', 'default_hooks.checkpoint.max_keep_ckpts=2'),
        ]
        with contextlib.redirect_stderr(sys.stdout):
            train.main([str(config), '--work-dir', f'{folder}/work', '--cfg-options', *options, *args.cfg_options])
    if not compare(args.tolerance):
        sys.exit(1)


def compare(tolerance: float) -> bool:
    """Print both parts, and say whether the last is as small as the one before.

    Args:
        tolerance (float): Share that memory may grow by.
    """
    third = len(CYCLES) // 3
    parts = [CYCLES[third : 2 * third], CYCLES[2 * third :]]
    memory = [statistics.median(cycle[1] for cycle in part) for part in parts]
    files = [max(cycle[2] for cycle in part) for part in parts]
    hours = CYCLES[-1][0] / 3600
    print(
        f'{len(CYCLES)} cycles in {hours:.2f} hours; second third and last: {memory[0]:.0f} and {memory[1]:.0f} MiB, '
        f'{files[0]} and {files[1]} open files'
    )
    return memory[1] <= memory[0] * (1 + tolerance) and files[1] <= files[0]


if __name__ == '__main__':
    main()
