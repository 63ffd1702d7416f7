"""Kill a training at random moments, resume each, and compare its weights with those of one that was never killed.

A part of the kills falls into the writing of a checkpoint: when half of it is on the disk, when all of it is and
bears no name yet, and when it is named and not yet noted as the last. A run is a process of its own, forked from one
that has imported everything; the CPU computes, so the weights have to be the same to the bit.

Example:
    python tools/analysis/kill_and_resume.py configs/mini/fcvit-mini_fpn_ade20k.py --kills 25 \
        --cfg-options train_cfg.max_iters=20 default_hooks.checkpoint.interval=4
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from mmvisattn import runs
from mmvisattn.compat import checkpoint
from mmvisattn.engine.durable_checkpoint_hook import DurableBackend
from mmvisattn.errors import UserError

import torch

from tools import train

STAGES = ('half written', 'written', 'named')  # of a checkpoint
RESULTS = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


def main(argv: Sequence[str] | None = None) -> None:
    """Kill, resume, compare; the exit status is 1 where a training came out otherwise."""
    args = parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = args.work_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sys.exit(0 if compare(args, folder) else 1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--kills', type=int, default=25, help='number of kills (default: 25)')
    parser.add_argument('--in-a-row', type=int, default=3, help='kills of one training before it may end (default: 3)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the training and of the moments (default: 0)')
    parser.add_argument('--work-dir', type=Path, help='folder to keep (default: a temporary one)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as of tools/train.py')
    return parser.parse_args(argv)


def compare(args: argparse.Namespace, folder: Path) -> bool:
    """Run the training once whole, then killed and resumed until there were enough kills; print a line for each."""
    options = ['--cfg-options', f'randomness.seed={args.seed}', *args.cfg_options]
    start = time.monotonic()
    if status := wait(run([args.config, '--work-dir', str(folder / 'whole'), *options])):
        raise SystemExit(f'the training itself ended with status {status}; see {folder}')
    length = time.monotonic() - start
    wanted = results(folder / 'whole')
    moments = random.Random(args.seed)
    kills, failures, equal, trainings = 0, 0, 0, 0
    while kills < args.kills:
        killed, trainings = folder / 'killed', trainings + 1
        shutil.rmtree(killed, ignore_errors=True)
        words = [args.config, '--work-dir', str(killed), '--resume', *options]
        for _ in range(min(args.in_a_row, args.kills - kills)):
            stage, after = moments.choice([*STAGES, None, None, None]), moments.randrange(1, 3)
            pid = run(words, stage, after)
            if stage is None:
                delay = moments.uniform(0.1, 0.9) * length
                time.sleep(delay)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            status = wait(pid)
            if status == 0:
                print('     it had ended already')
                break
            kills, failures = kills + 1, failures + (status != -signal.SIGKILL)
            moment = f'{stage} checkpoint {after} of the run' if stage else f'{delay:.1f} s after the start'
            reached = Path(runs.latest_checkpoint(killed) or 'no checkpoint').stem
            print(f'{kills:4} {"killed" if status == -signal.SIGKILL else f"STATUS {status}"} at: {moment}; {reached}')
        status = wait(run(words))
        same = status == 0 and all(map(same_values, wanted.values(), results(killed).values()))
        equal += same
        outcome = 'the same weights to the bit' if same else f'OTHER WEIGHTS, status {status}'
        print(f'     resumed to the end: {outcome}', flush=True)
    print(f'{kills} kills of {trainings} trainings: {equal} of them ended with the same weights to the bit')
    return equal == trainings and not failures


def run(words: list[str], stage: str | None = None, after: int = 0) -> int:
    """Fork a training, which dies at a stage of a checkpoint if one is given; returns its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        log = os.open(os.environ.get('KILL_LOG', os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        if stage:
            die_at(stage, after)
        train.main(words)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(stage: str, after: int) -> None:
    """Have this process killed at a stage of the checkpoint of that number."""
    put, count = DurableBackend.put, iter(range(1, after + 1))

    def put_and_die(backend: DurableBackend, obj: bytes, filepath: str) -> None:
        if next(count, after) != after:
            put(backend, obj, filepath)
        elif stage == 'half written':
            Path(f'{filepath}.part').write_bytes(obj[: len(obj) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        elif stage == 'written':
            os.replace = Path.replace = _die  # type: ignore[assignment]
            put(backend, obj, filepath)
        else:
            put(backend, obj, filepath)
            os.kill(os.getpid(), signal.SIGKILL)

    DurableBackend.put = put_and_die  # type: ignore[method-assign, assignment]


_die: Callable = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731


def results(folder: Path) -> dict:
    """What the last checkpoint has, but for logs and times."""
    path = runs.latest_checkpoint(folder)
    if path is None:
        raise UserError(f'{folder} has no checkpoint')
    content = checkpoint.load(path)
    return {key: content.get(key) for key in RESULTS}


def same_values(first: object, second: object) -> bool:
    """Whether two parts of checkpoints are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and list(first) == list(second)
            and all(same_values(first[key], second[key]) for key in first)
        )
    if isinstance(first, list | tuple):
        return isinstance(second, list | tuple) and len(first) == len(second) and all(map(same_values, first, second))
    return first == second


if __name__ == '__main__':
    main()
