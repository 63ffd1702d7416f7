"""Train variants of a network on generated scenes, over several seeds, and compare what they learned.

Each training is ``tools/train.py`` with a config of ``configs/mini``, settings of its own and a seed, some after one
another; the figures are those of the validation at the end. What is finished is kept: a second run goes on where the
first one stopped, and ``--seeds`` may be raised later. Variants take turns, so that an early stop leaves them evenly
measured.

Example:
    python tools/data/make_mini.py data/mini
    python tools/analysis/mini_study.py filter --seeds 0 1 2
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """A training that all variants go through.

    Args:
        config: Config file.
        options: ``--cfg-options``.
        metrics: Keys of the results of its last validation, and what they are called in the table.
        common: It is one training, of seed 0, for all seeds and variants; what sets these apart begins after it.
    """

    config: str
    options: list[str]
    metrics: dict[str, str] = field(default_factory=dict)
    common: bool = False


@dataclass(frozen=True)
class Variant:
    """What sets a variant apart.

    Args:
        options: ``--cfg-options`` in all stages that are not common.
        config: Config file of the last stage in place of that of all.
    """

    options: list[str] = field(default_factory=list)
    config: str | None = None


@dataclass(frozen=True)
class Study:
    """Variants of a network, and how they are trained.

    Args:
        variants: The variants by name.
        stages: Trainings one after another; each starts from the weights of the one before.
        data: Arguments of ``tools/data/make_mini.py`` that make the scenes, for each set of them.
        tests: Settings under which a trained variant is tested once more: the variant and ``--cfg-options``, by name.
        flops_size: Height and width of the images for which backbone and neck are counted; None for no such column.
    """

    variants: dict[str, Variant]
    stages: list[Stage]
    data: list[list[str]] = field(default_factory=lambda: [['data/mini']])
    tests: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    flops_size: tuple[int, int] | None = None


# A job has one core, which loads its pictures too.
ONE_PROCESS = ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
# Scenes of many small objects, and larger scenes of few of them.
SMALL_OBJECTS = ['data/mini_small', *'--shares 0.6 0.4 0 --smallest 12 --objects 2 7 --val 200'.split()]
SPARSE_OBJECTS = [
    'data/mini_sparse',
    *'--size 256 192 --shares 1 0 0 --smallest 12 --objects 2 5 --crowd 0 --val 200'.split(),
]
ADE_OF_SMALL = [
    f'{split}_dataloader.dataset.data_root={SMALL_OBJECTS[0]}/ade/ADEChallengeData2016' for split in ('train', 'val')
]
SELECT = 'model.backbone.select_'
STUDIES = {
    # What the bandpass filter of De-focus attention buys a causal ViT.
    'filter': Study(
        variants={
            'decay and rotation': Variant(),
            'decay': Variant(['model.backbone.rotation=False']),
            'rotation': Variant(['model.backbone.decay=False']),
            'neither': Variant(['model.backbone.decay=False', 'model.backbone.rotation=False']),
        },
        stages=[
            Stage(
                config='configs/mini/defocus-vit-mini_upernet_ade20k.py',
                options=[
                    *('train_cfg.max_iters=300', 'train_cfg.val_interval=300', 'param_scheduler.1.end=300'),
                    *ONE_PROCESS,
                ],
                metrics={'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'},
            )
        ],
    ),
    # What it buys FlexViT to look closely, and to look where its attention points.
    'flex': Study(
        variants={
            # The same ViT without the full image; its map is half as fine, so the pyramid begins a step further up.
            'low resolution': Variant(
                ['model.backbone.num_plain_layers=6', 'model.backbone.out_indices=(1,)', 'model.neck.start_level=1']
            ),
            '25 %': Variant([SELECT + 'ratio=0.25']),
            '25 %, random': Variant([SELECT + 'ratio=0.25', SELECT + 'mode=random']),
            'all': Variant([SELECT + 'ratio=1.0']),
        },
        stages=[
            Stage(config='configs/mini/vit-mini_upernet_ade20k.py', options=[*ADE_OF_SMALL, *ONE_PROCESS], common=True),
            Stage(
                config='configs/mini/atss_flexvit-mini_simple-fpn_coco.py',
                options=ONE_PROCESS,
                metrics={'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP_s': 'AP small'},
            ),
        ],
        data=[SMALL_OBJECTS, SPARSE_OBJECTS],
        # The weights that know all cells, and less and less to look at.
        tests={
            f'all, tested at {ratio} %, {name}': ('all', [f'{SELECT}ratio={ratio / 100}', *options])
            for ratio in (50, 25)
            for name, options in {
                'contrast': [],
                'received': ['model.backbone.relevance=received'],
                'random': [SELECT + 'mode=random'],
            }.items()
        }
        | {'all, tested at 0 %': ('all', [SELECT + 'ratio=0.0'])},
        flops_size=(192, 256),
    ),
    # What the neck buys a convolutional backbone.
    'neck': Study(
        variants={
            'FPN': Variant(),
            'FPN, FlexAttentionNeck': Variant(config='configs/mini/mask-rcnn_fcvit-mini_fpn_flexattention_coco.py'),
        },
        stages=[
            Stage(config='configs/mini/fcvit-mini_fpn_ade20k.py', options=ONE_PROCESS, common=True),
            Stage(
                config='configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py',
                options=ONE_PROCESS,
                metrics={
                    **{'coco/bbox_mAP': 'box AP', 'coco/bbox_mAP_50': 'box AP50', 'coco/bbox_mAP_s': 'box AP small'},
                    'coco/segm_mAP': 'mask AP',
                },
            ),
        ],
        flops_size=(128, 160),
    ),
}


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        name: What to call it.
        config: Config file.
        options: ``--cfg-options``.
        metrics: The figures to keep, see :class:`Stage`.
        folder: Folder for logs and checkpoints.
        start: The training from whose weights it starts, or None.
    """

    name: str
    config: str
    options: list[str]
    metrics: dict[str, str]
    folder: Path
    start: 'Training | None' = None

    @property
    def result_file(self) -> Path:
        """Where the figures stand."""
        return self.folder / 'result.json'

    @property
    def figures(self) -> dict[str, float]:
        """What came out."""
        return json.loads(self.result_file.read_text())

    def command(self) -> list[str]:
        """The training, as words of a command."""
        words = ['tools/train.py', self.config, '--work-dir', str(self.folder)]
        options = list(self.options)
        if (self.folder / 'last_checkpoint').exists():
            words.append('--resume')  # beside which mmengine takes ``load_from`` for the checkpoint to resume
        elif self.start is not None:
            options.append(f'load_from={(self.start.folder / "last_checkpoint").read_text().strip()}')
        return [*words, '--cfg-options', *options]

    def run(self, threads: int) -> None:
        """Do it and write down the figures, unless an earlier run did.

        Raises:
            RuntimeError: If it fails; its words are in ``log.txt``.
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
            raise RuntimeError(f'{self.name}: status {status}; see {log.name}')
        figures = {'minutes': (time.monotonic() - start) / 60} | (self.read_figures() if self.metrics else {})
        self.result_file.write_text(json.dumps(figures))
        shown = ''.join(f'{label} {figures[key]:.4g}, ' for key, label in self.metrics.items())
        print(f'{self.name}: {shown}{figures["minutes"]:.1f} minutes', flush=True)

    def read_figures(self) -> dict[str, float]:
        """The figures of the newest validation in the logs."""
        key = next(iter(self.metrics))
        newest = sorted(self.folder.glob('*/vis_data/scalars.json'))[-1]
        lines = [json.loads(line) for line in newest.read_text().splitlines()]
        return next(line for line in reversed(lines) if key in line)


class Test(Training):
    """A test of what a training has made, with settings of its own; ``start`` is that training."""

    def command(self) -> list[str]:
        """The test, as words of a command."""
        checkpoint = (self.start.folder / 'last_checkpoint').read_text().strip()
        words = ['tools/test.py', self.config, checkpoint, '--work-dir', str(self.folder)]
        return [*words, '--cfg-options', *self.options]

    def read_figures(self) -> dict[str, float]:
        """The figures of the newest test."""
        return json.loads(sorted(self.folder.glob('*/*.json'))[-1].read_text())


def plan(study: Study, seed: int, folder: Path) -> dict[str, list[Training]]:
    """The trainings of each variant, stage by stage, and what else is tested; a common stage is one training.

    Args:
        study: The study.
        seed: Seed of all of them.
        folder: Folder of the study.
    """
    trainings: dict[str, list[Training]] = {}
    known: dict[str, Training] = {}
    for name, variant in study.variants.items():
        start = None
        trainings[name] = []
        for number, stage in enumerate(study.stages, 1):
            is_last = number == len(study.stages)
            label = f'stage {number}' if stage.common else name if is_last else f'{name}, stage {number}'
            if label not in known:
                own = 0 if stage.common else seed
                known[label] = Training(
                    name=f'{label!r}, seed {own}',
                    config=variant.config if variant.config and is_last else stage.config,
                    options=[*stage.options, *([] if stage.common else variant.options), f'randomness.seed={own}'],
                    metrics=stage.metrics,
                    folder=folder / re.sub(r'\W+', '_', label) / f'seed{own}',
                    start=start,
                )
            start = known[label]
            trainings[name].append(start)
    for name, (variant, options) in study.tests.items():
        start = trainings[variant][-1]
        test = Test(
            name=f'{name!r}, seed {seed}',
            config=start.config,
            options=[*start.options, *options],
            metrics=start.metrics,
            folder=folder / re.sub(r'\W+', '_', name) / f'seed{seed}',
            start=start,
        )
        trainings[name] = [*trainings[variant][:-1], test]
    return trainings


def run_all(trainings: Sequence[Training], jobs: int) -> None:
    """Run trainings, some at a time, each after the one that it starts from."""
    threads = max((os.cpu_count() or 1) // jobs, 1)
    done: dict[Path, Future] = {}

    def run(training: Training) -> None:
        if training.start is not None:
            done[training.start.folder].result()  # earlier in the list, so it has been taken up
        training.run(threads)

    with ThreadPoolExecutor(jobs) as pool:
        for training in trainings:
            if training.folder not in done:
                done[training.folder] = pool.submit(run, training)
        try:
            for future in done.values():
                future.result()
        except (KeyboardInterrupt, RuntimeError) as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f'{error or "stopped"}; the same command goes on where this one stopped')


def backbone_flops(training: Training, size: tuple[int, int]) -> int:
    """FLOPs of backbone and neck on one image, from the config that the training has written down."""
    from get_flops import count

    config = training.folder / Path(training.config).name
    return count(str(config), size, 'neck').flops['']


def print_table(study: Study, plans: Sequence[dict[str, list[Training]]]) -> None:
    """Mean of each figure over the seeds, with the seeds' own behind it."""
    labels = [f'{label}, mean (seeds)' for stage in study.stages for label in stage.metrics.values()]
    if study.flops_size:
        labels.append('MFLOPs of backbone and neck')
    print(f'\n| variant | {" | ".join(labels)} |\n|---|{"---|" * len(labels)}')
    for variant in plans[0]:
        cells = []
        for number, stage in enumerate(study.stages):
            for key in stage.metrics:
                # mmseg writes per cent, mmdet shares of one.
                figures = [trainings[variant][number].figures[key] for trainings in plans]
                values = [value / 100 if value > 1 else value for value in figures]
                cells.append(f'{statistics.mean(values):.3f} ({", ".join(f"{value:.3f}" for value in values)})')
        if study.flops_size:
            cells.append(f'{backbone_flops(plans[0][variant][-1], study.flops_size) / 1e6:.0f}')
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
    for words in study.data:
        subprocess.run([sys.executable, 'tools/data/make_mini.py', *words], cwd=ROOT, check=True)
    folder = (ROOT / args.work_dir / args.study).resolve()
    plans = [plan(study, seed, folder) for seed in args.seeds]
    trainings = [t for variants in plans for stage in zip(*variants.values()) for t in stage]
    run_all(sorted(trainings, key=lambda t: isinstance(t, Test)), args.jobs)  # tests last, when there is what to test
    print_table(study, plans)


if __name__ == '__main__':
    main()
