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
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis.get_flops import count
from tools.driver import ROOT, Test, Training, run_script


@dataclass(frozen=True)
class Stage:
    """A training that all variants go through.

    Args:
        config (str): Config file.
        options (list[str]): ``--cfg-options``.
        metrics (dict[str, str]): Keys of the results of its last validation, and what they are called in the table.
        common (bool): It is one training, of seed 0, for all seeds and variants; what sets these apart begins after it.
    """

    config: str
    options: list[str]
    metrics: dict[str, str] = field(default_factory=dict)
    common: bool = False


@dataclass(frozen=True)
class Variant:
    """What sets a variant apart.

    Args:
        options (list[str]): ``--cfg-options`` in all stages that are not common.
        config (str, optional): Config file of the last stage in place of that of all.
    """

    options: list[str] = field(default_factory=list)
    config: str | None = None


@dataclass(frozen=True)
class Study:
    """Variants of a network, and how they are trained.

    Args:
        variants (dict[str, Variant]): The variants by name.
        stages (list[Stage]): Trainings one after another; each starts from the weights of the one before.
        data (list[list[str]]): Arguments of ``tools/data/make_mini.py`` that make the scenes, for each set of them.
        tests (dict[str, tuple[str, list[str]]]): Settings under which a trained variant is tested once more: the
            variant and ``--cfg-options``, by name.
        flops_size (tuple[int, int], optional): Height and width of the images for which backbone and neck are counted;
            None for no such column.
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


def plan(study: Study, seed: int, folder: Path) -> dict[str, list[Training]]:
    """The trainings of each variant, stage by stage, and what else is tested; a common stage is one training.

    Args:
        study (Study): The study.
        seed (int): Seed of all of them.
        folder (Path): Folder of the study.
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
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    done: dict[Path, Future] = {}

    def run(training: Training) -> None:
        if training.start is not None:
            done[training.start.folder].result()  # earlier in the list, so it has been taken up
        if training.result_file.exists():
            return
        log = training.folder / 'log.txt'
        try:
            training.run(log, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f'{training.name}: status {error.returncode}; see {log}') from error
        shown = ''.join(f'{label} {share:.3f}, ' for label, share in training.shares)
        print(f'{training.name}: {shown}{training.figures["minutes"]:.1f} minutes', flush=True)

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


def print_table(study: Study, plans: Sequence[dict[str, list[Training]]]) -> None:
    """Mean of each figure over the seeds, with the seeds' own behind it."""
    labels = [f'{label}, mean (seeds)' for stage in study.stages for label in stage.metrics.values()]
    if study.flops_size:
        labels.append('MFLOPs of backbone and neck')
    print(f'\n| variant | {" | ".join(labels)} |\n|---|{"---|" * len(labels)}')
    for variant in plans[0]:
        cells = []
        for stages in zip(*(trainings[variant] for trainings in plans)):  # of all seeds
            for of_seeds in zip(*(training.shares for training in stages)):
                values = [share for _, share in of_seeds]
                cells.append(f'{statistics.mean(values):.3f} ({", ".join(f"{value:.3f}" for value in values)})')
        if study.flops_size:
            last = plans[0][variant][-1]
            config = last.folder / Path(last.config).name  # as the training has written it down
            cells.append(f'{count(str(config), study.flops_size, "neck").flops[""] / 1e6:.0f}')
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
        run_script('tools/data/make_mini.py', *words)
    folder = (ROOT / args.work_dir / args.study).resolve()
    plans = [plan(study, seed, folder) for seed in args.seeds]
    trainings = [t for variants in plans for stage in zip(*variants.values()) for t in stage]
    run_all(sorted(trainings, key=lambda t: isinstance(t, Test)), args.jobs)  # tests last, when there is what to test
    print_table(study, plans)


if __name__ == '__main__':
    main()
