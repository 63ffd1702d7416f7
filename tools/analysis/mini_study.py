"""Train variants of a network on generated scenes, over several seeds, and compare what they learned.

Each run is ``tools/train.py`` with a config of ``configs/mini``, settings of its own and a seed; the figures are those
of the validation at its end. What is finished is kept: a second run goes on where the first one stopped, and
``--seeds`` may be raised later. Runs of all variants take turns, so that an early stop leaves them evenly measured.

Example:
    python tools/data/make_mini.py data/mini
    python tools/analysis/mini_study.py filter --seeds 0 1 2
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Study:
    """Variants of one config.

    Args:
        config: Config file.
        variants: Name of each variant and its ``--cfg-options``.
        metrics: Keys of the validation's results, and what they are called in the table.
        options: ``--cfg-options`` of all variants.
        data: Arguments of ``tools/data/make_mini.py`` that make the scenes.
    """

    config: str
    variants: dict[str, list[str]]
    metrics: dict[str, str]
    options: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=lambda: ['data/mini'])


# A job has one core, which loads its pictures too.
ONE_PROCESS = ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
STUDIES = {
    # What the bandpass filter of De-focus attention buys a causal ViT.
    'filter': Study(
        config='configs/mini/defocus-vit-mini_upernet_ade20k.py',
        variants={
            'decay and rotation': [],
            'decay': ['model.backbone.rotation=False'],
            'rotation': ['model.backbone.decay=False'],
            'neither': ['model.backbone.decay=False', 'model.backbone.rotation=False'],
        },
        metrics={'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'},
        options=[
            *('train_cfg.max_iters=300', 'train_cfg.val_interval=300', 'param_scheduler.1.end=300'),
            *ONE_PROCESS,
        ],
    ),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        study: What it belongs to.
        variant: Name of the variant.
        seed: Seed of the training.
        folder: Folder for logs and checkpoints.
    """

    study: Study
    variant: str
    seed: int
    folder: Path

    @property
    def result_file(self) -> Path:
        """Where the figures stand."""
        return self.folder / 'result.json'

    def command(self) -> list[str]:
        """The training, as words of a command."""
        options = [*self.study.options, *self.study.variants[self.variant], f'randomness.seed={self.seed}']
        resume = ['--resume'] if (self.folder / 'last_checkpoint').exists() else []
        return [
            *('tools/train.py', self.study.config, '--work-dir', str(self.folder)),
            *(*resume, '--cfg-options', *options),
        ]

    def train(self, threads: int) -> None:
        """Train and write down the figures, unless an earlier run did.

        Raises:
            RuntimeError: If the training fails; its words are in ``log.txt``.
        """
        if self.result_file.exists():
            return
        command = self.command()
        print(f'$ python {shlex.join(command)}', flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with (self.folder / 'log.txt').open('a') as log:
            env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
            words = [sys.executable, *command]
            status = subprocess.run(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
        if status:
            raise RuntimeError(f'{self.variant!r}, seed {self.seed}: status {status}; see {log.name}')
        figures = self.last_validation()
        figures['minutes'] = (time.monotonic() - start) / 60
        self.result_file.write_text(json.dumps(figures))
        shown = ', '.join(f'{label} {figures[key]:.4g}' for key, label in self.study.metrics.items())
        print(f'{self.variant}, seed {self.seed}: {shown}; {figures["minutes"]:.1f} minutes', flush=True)

    def last_validation(self) -> dict[str, float]:
        """The figures of the newest validation in the logs."""
        key = next(iter(self.study.metrics))
        newest = sorted(self.folder.glob('*/vis_data/scalars.json'))[-1]
        lines = [json.loads(line) for line in newest.read_text().splitlines()]
        return next(line for line in reversed(lines) if key in line)


def print_table(study: Study, runs: Sequence[Run]) -> None:
    """Mean of each figure over the seeds, with the seeds' own behind it."""
    labels = [f'{label}, mean (seeds)' for label in study.metrics.values()]
    print(f'\n| variant | {" | ".join(labels)} |\n|---|{"---|" * len(labels)}')
    for variant in study.variants:
        figures = [json.loads(run.result_file.read_text()) for run in runs if run.variant == variant]
        cells = []
        for key in study.metrics:
            # mmseg writes per cent, mmdet shares of one.
            values = [f[key] / 100 if f[key] > 1 else f[key] for f in figures]
            cells.append(f'{statistics.mean(values):.3f} ({", ".join(f"{value:.3f}" for value in values)})')
        print(f'| {variant} | {" | ".join(cells)} |')


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', choices=STUDIES)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time; default: one a core')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/studies'), help='default: work_dirs/studies')
    args = parser.parse_args(argv)

    study = STUDIES[args.study]
    subprocess.run([sys.executable, 'tools/data/make_mini.py', *study.data], cwd=ROOT, check=True)
    base = (ROOT / args.work_dir / args.study).resolve()
    runs = [
        Run(study, variant, seed, base / variant.replace(' ', '_').replace('%', '') / f'seed{seed}')
        for seed in args.seeds
        for variant in study.variants
    ]
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            list(pool.map(lambda run: run.train(threads), runs))
        except (KeyboardInterrupt, RuntimeError) as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f'{error or "stopped"}; the same command goes on where this one stopped')
    print_table(study, runs)


if __name__ == '__main__':
    main()
