"""Train variants of a network on generated scenes, over several seeds, and compare what they learned.

Each training is ``tools/train.py`` with a config of ``configs/mini``, settings of its own and a seed, some after one
another; the figures are those of the validation at the end. What is finished is kept: a second run goes on where the
first one stopped, and ``--seeds`` may be raised later. Variants take turns, so that an early stop leaves them evenly
measured. Figures are read from and added to ``docs/studies/STUDY.json`` too, so that they outlast the work directory.

Example:
    python tools/data/make_mini.py data/mini
    python tools/analysis/mini_study.py filter --seeds 0 1 2
"""

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from mmvisattn.errors import UserError

from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis.get_flops import count
from tools.analysis.intervals import half_width
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
        first (list[str], optional): ``--cfg-options`` of a training of its own before the last stage, with the config
            of that stage and on top of its options; None for none.
        seeds (int, optional): Seeds from this on are left out, where one costs much and decides little; None for all.
    """

    options: list[str] = field(default_factory=list)
    config: str | None = None
    first: list[str] | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Scale:
    """Variants by whose first metric that of the others is told once more.

    Args:
        low (str): It counts as 0.
        high (str): It counts as 1.
        chance (str): How far the others are ahead of it is told as well.
    """

    low: str
    high: str
    chance: str


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
        scale (Scale, optional): What the first metric is told on as well, paired by seed; None for no such columns.
        differences (list[tuple[str, str]]): Pairs of variants of which is told how far the first is ahead in the first
            metric, paired by seed.
    """

    variants: dict[str, Variant]
    stages: list[Stage]
    data: list[list[str]] = field(default_factory=lambda: [['data/mini']])
    tests: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    flops_size: tuple[int, int] | None = None
    scale: Scale | None = None
    differences: list[tuple[str, str]] = field(default_factory=list)


# A job has one core, which loads its pictures too.
ONE_PROCESS = ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
# A search for one or two targets among decoys, and what is to be learned of it from near.
SEARCH = [
    'data/mini_search',
    *'--train 4800 --val 300 --size 256 256 --classes 3 --objects 1 2 --empty 0.1 --decoys 6 10'.split(),
]
SEARCH_NEAR = [
    'data/mini_search_near',
    *'--train 1600 --val 100 --size 96 96 --classes 3 --objects 4 6 --empty 0 --decoys 2 3 --seed 1'.split(),
]
# The same search in scenes that no choice of ours has seen.
SEARCH_FRESH = [
    'data/mini_search_fresh',
    *'--train 8 --val 300 --size 256 256 --classes 3 --objects 1 2 --empty 0.1 --decoys 6 10 --seed 2'.split(),
]
# Scenes of many small objects, and larger scenes of few of them.
SMALL_OBJECTS = ['data/mini_small', *'--shares 0.6 0.4 0 --smallest 12 --objects 2 7 --val 200'.split()]
SPARSE_OBJECTS = [
    'data/mini_sparse',
    *'--size 256 192 --shares 1 0 0 --smallest 12 --objects 2 5 --crowd 0 --val 200'.split(),
]
ADE_OF_SMALL = [
    f'{split}_dataloader.dataset.data_root={SMALL_OBJECTS[0]}/ade/ADEChallengeData2016' for split in ('train', 'val')
]
BACKBONE = 'model.backbone.'
NECK = 'model.neck.1.'
RULE = 'custom_hooks.4.rule='
LABELS_FIRST = ['custom_hooks.3.labels_first=True']
NOT_TAUGHT = ['custom_hooks.3.type=EmptyCacheHook']  # of mmengine, in the place of CellLossHook


def taught_first(epochs: int) -> list[str]:
    """Passes over the glance alone, in which only the choice learns; one is short for a network that knows nothing."""
    return [
        *(f'train_cfg.{key}={epochs}' for key in ('max_epochs', 'val_interval')),
        *(f'param_scheduler.1.{key}={epochs}' for key in ('T_max', 'end')),
        BACKBONE + 'select_ratio=0.0',
        *(f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult=0' for key in ('backbone', 'neck', 'bbox_head')),
        'optim_wrapper.paramwise_cfg.custom_keys.relevance.lr_mult=2',
    ]


def tested_at(variant: str, percents: Sequence[int], *rules: str) -> dict[str, tuple[str, list[str]]]:
    """Tests of what a variant has learned with other shares of the cells, chosen by each rule."""
    return {
        f'{variant}, tested at {percent} %, {rule}': (
            variant,
            [BACKBONE + f'select_ratio={percent / 100}', RULE + rule],
        )
        for percent in percents
        for rule in rules
    }


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
    # What it buys FlexViT to look closely, and to look where its questions point, in a search for small targets.
    'search': Study(
        variants={
            # A plain ViT on the shrunk image; its map is four times as coarse, so the pyramid begins further down.
            'low resolution': Variant(
                [BACKBONE + 'num_glance_layers=6', BACKBONE + 'out_indices=(1,)', 'model.neck.start_level=0']
            ),
            '0 %': Variant([BACKBONE + 'select_ratio=0.0'], seeds=3),
            '10 %, chance': Variant([RULE + 'chance']),
            '10 %, centre': Variant([RULE + 'centre'], seeds=3),
            '10 %, pixel deviation': Variant([RULE + 'deviation']),
            '10 %, chosen, not taught': Variant(NOT_TAUGHT, seeds=3),
            '10 %, chosen': Variant(),
            '10 %, chosen, taught first': Variant(first=taught_first(4)),
            '10 %, chosen, taught for longer': Variant(first=taught_first(8)),
            '10 %, truth': Variant([RULE + 'truth']),
            'all': Variant([BACKBONE + 'select_ratio=1.0'], seeds=2),
        },
        stages=[
            Stage(config='configs/mini/fcn_vit-search_ade20k.py', options=ONE_PROCESS, common=True),
            Stage(
                config='configs/mini/atss_flexvit-search_coco.py',
                options=ONE_PROCESS,
                metrics={
                    'coco/bbox_mAP_50': 'AP50',
                    'coco/bbox_mAP': 'AP',
                    'cells/recall': 'targets met',
                    'found/class_accuracy': 'class of those found',
                },
            ),
        ],
        data=[SEARCH_NEAR, SEARCH, SEARCH_FRESH],
        # The weights that know all cells, with a tenth of them to look at, and those of the best choice with fewer and
        # with more than they were trained with.
        tests={
            **tested_at('all', [10], 'chance', 'deviation', 'truth'),
            **tested_at('10 %, chosen, taught for longer', [5, 10, 20], 'chance', 'deviation', 'relevance', 'truth'),
            '10 %, chosen, taught for longer, tested on fresh scenes': (
                '10 %, chosen, taught for longer',
                [
                    f'test_dataloader.dataset.data_root={SEARCH_FRESH[0]}/coco/',
                    f'test_evaluator.ann_file={SEARCH_FRESH[0]}/coco/annotations/instances_val2017.json',
                ],
            ),
        },
        flops_size=(256, 256),
        scale=Scale('low resolution', 'all', '10 %, chance'),
    ),
    # The same on scenes full of small objects, where there is something to see in many places.
    'dense': Study(
        variants={
            '25 %, chosen': Variant(),
            '25 %, chance': Variant([RULE + 'chance']),
            '25 %, pixel deviation': Variant([RULE + 'deviation']),
            # The same ViT without the full image; its map is half as fine, so the pyramid begins a step further up.
            'low resolution': Variant(
                [BACKBONE + 'num_glance_layers=6', BACKBONE + 'out_indices=(1,)', 'model.neck.start_level=1'], seeds=1
            ),
            '0 %': Variant([BACKBONE + 'select_ratio=0.0'], seeds=1),
            'all': Variant([BACKBONE + 'select_ratio=1.0'], seeds=1),
        },
        stages=[
            Stage(config='configs/mini/vit-mini_upernet_ade20k.py', options=[*ADE_OF_SMALL, *ONE_PROCESS], common=True),
            Stage(
                config='configs/mini/atss_flexvit-mini_simple-fpn_coco.py',
                options=ONE_PROCESS,
                metrics={
                    'coco/bbox_mAP_s': 'AP small',
                    'coco/bbox_mAP': 'AP',
                    'coco/bbox_mAP_50': 'AP50',
                    'cells/recall': 'objects met',
                },
            ),
        ],
        data=[SMALL_OBJECTS, SPARSE_OBJECTS],
        # Given networks under less and less to look at.
        tests={
            name: test
            for variant in ('all', '25 %, chosen')
            for name, test in (
                tested_at(variant, [50, 25, 10], 'relevance', 'chance', 'deviation')
                | tested_at(variant, [0], 'relevance')
            ).items()
        },
        flops_size=(192, 256),
        differences=[('25 %, chosen', other) for other in ('25 %, chance', '25 %, pixel deviation')],
    ),
    # What FlexAttentionNeck buys a convolutional backbone, and what it owes to where it looks, in the same search.
    'neck': Study(
        variants={
            'FPN': Variant(config='configs/mini/atss_fcvit-search_fpn_coco.py'),
            '10 %, chance': Variant([RULE + 'chance']),
            '10 %, chosen': Variant(),
            '10 %, chosen, labels first': Variant(LABELS_FIRST),
            # As many FLOPs as with a tenth of the cells.
            'FPN, seven plain layers': Variant([NECK + 'select_ratio=0.0', NECK + 'num_layers=6']),
            '10 %, truth': Variant([RULE + 'truth']),
        },
        stages=[
            Stage(
                config='configs/mini/atss_fcvit-search_fpn_flexattention_coco.py',
                options=ONE_PROCESS,
                metrics={'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP': 'AP', 'cells/recall': 'targets met'},
            ),
        ],
        data=[SEARCH],
        flops_size=(256, 256),
        differences=[
            ('10 %, truth', 'FPN'),
            *(('10 %, chosen', other) for other in ('10 %, chance', 'FPN', 'FPN, seven plain layers')),
            *(('10 %, chosen, labels first', other) for other in ('10 %, chosen', 'FPN')),
        ],
    ),
    # The same on scenes full of objects.
    'neck_dense': Study(
        variants={
            'FPN': Variant(config='configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py'),
            'FPN, three plain layers': Variant([NECK + 'select_ratio=0.0', NECK + 'num_layers=2']),
            # As many FLOPs as with a quarter of the cells.
            'FPN, twenty plain layers': Variant([NECK + 'select_ratio=0.0', NECK + 'num_layers=19']),
            '25 %, chance': Variant([RULE + 'chance']),
            '25 %, chosen': Variant(),
        },
        stages=[
            Stage(config='configs/mini/fcvit-mini_fpn_ade20k.py', options=ONE_PROCESS, common=True),
            Stage(
                config='configs/mini/mask-rcnn_fcvit-mini_fpn_flexattention_coco.py',
                options=ONE_PROCESS,
                metrics={
                    **{'coco/bbox_mAP': 'box AP', 'coco/bbox_mAP_50': 'box AP50', 'coco/bbox_mAP_s': 'box AP small'},
                    **{'coco/segm_mAP': 'mask AP', 'cells/recall': 'objects met'},
                },
            ),
        ],
        flops_size=(128, 160),
        differences=[
            ('25 %, chosen', other)
            for other in ('25 %, chance', 'FPN', 'FPN, three plain layers', 'FPN, twenty plain layers')
        ],
    ),
}


def plan(study: Study, seed: int, folder: Path) -> dict[str, list[Training]]:
    """The trainings of each variant of a seed, stage by stage, and what else is tested.

    A common stage is one training.

    Args:
        study (Study): The study.
        seed (int): Seed of all of them.
        folder (Path): Folder of the study.
    """
    trainings: dict[str, list[Training]] = {}
    known: dict[str, Training] = {}
    for name, variant in study.variants.items():
        if variant.seeds is not None and seed >= variant.seeds:
            continue
        *before, last = study.stages
        stages = [
            (f'stage {number}' if stage.common else f'{name}, stage {number}', stage, variant.options)
            for number, stage in enumerate(before, 1)
        ]
        last = replace(last, config=variant.config or last.config)
        if variant.first is not None:
            stages.append((f'{name}, before', replace(last, metrics={}), [*variant.options, *variant.first]))
        stages.append((name, last, variant.options))
        start = None
        trainings[name] = []
        for label, stage, options in stages:
            if label not in known:
                own = 0 if stage.common else seed
                known[label] = Training(
                    name=f'{label!r}, seed {own}',
                    config=stage.config,
                    options=[*stage.options, *([] if stage.common else options), f'randomness.seed={own}'],
                    metrics=stage.metrics,
                    folder=folder / re.sub(r'\W+', '_', label) / f'seed{own}',
                    start=start,
                )
            start = known[label]
            trainings[name].append(start)
    for name, (variant, options) in study.tests.items():
        if variant not in trainings:
            continue
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


def missing(trainings: Sequence[Training]) -> list[Training]:
    """The trainings whose figures are missing, each after those whose weights it needs and that are missing too."""
    needed: dict[Path, Training] = {}

    def need(training: Training) -> None:
        start = training.start
        if start is not None and (start.checkpoint is None or not start.result_file.exists()):
            start.result_file.unlink(missing_ok=True)  # figures alone, of weights that are gone
            need(start)
        needed.setdefault(training.folder, training)

    for training in trainings:
        if training.metrics and not training.result_file.exists():  # others are there for their weights
            need(training)
    return list(needed.values())


def run_all(trainings: Sequence[Training], jobs: int, results: Path | None = None) -> None:
    """Run trainings, some at a time, each after the one that it starts from.

    Args:
        trainings (Sequence[Training]): The trainings, in this order.
        jobs (int): How many at a time.
        results (Path, optional): File of the figures of what is finished, by name; figures that are there are taken
            from it, and new ones added.
    """
    known = json.loads(results.read_text()) if results and results.exists() else {}
    for training in trainings:
        if training.name in known and not training.result_file.exists():
            training.folder.mkdir(parents=True, exist_ok=True)
            training.result_file.write_text(json.dumps(known[training.name]))
    threads = str(max((os.cpu_count() or 1) // jobs, 1))

    def train(training: Training) -> None:
        log = training.folder / 'log.txt'
        try:
            training.run(log, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f'{training.name}: status {error.returncode}; see {log}') from error
        shown = ''.join(f'{label} {share:.3f}, ' for label, share in training.shares)
        print(f'{training.name}: {shown}{training.figures["minutes"]:.1f} minutes', flush=True)

    def keep(training: Training) -> None:
        if results and training.metrics:
            figures = training.figures
            known[training.name] = {key: figures[key] for key in ('minutes', *training.metrics) if key in figures}
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(known, indent=2, sort_keys=True) + '\n')

    waiting = missing(trainings)
    for training in trainings:
        if training.result_file.exists():
            keep(training)
    running: dict[Future, Training] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                # What has to wait for another takes no job's place.
                unfinished = {training.folder for training in (*waiting, *running.values())}
                ready = [one for one in waiting if one.start is None or one.start.folder not in unfinished]
                for training in ready[: jobs - len(running)]:
                    waiting.remove(training)
                    running[pool.submit(train, training)] = training
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    training = running.pop(future)
                    future.result()
                    keep(training)
        except (KeyboardInterrupt, RuntimeError, UserError) as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f'{error or "stopped"}; the same command goes on where this one stopped')


def print_table(study: Study, plans: Sequence[dict[str, list[Training]]]) -> None:
    """Mean of each figure over the seeds, with the seeds' own behind it."""
    labels = [f'{label}, mean (seeds)' for stage in study.stages for label in stage.metrics.values()]
    if study.scale:
        labels += ['gap closed (95 % interval)', 'ahead of chance (95 % interval)']
    if study.flops_size:
        labels.append('MFLOPs of backbone and neck')
    print(f'\n| variant | {" | ".join(labels)} |\n|---|{"---|" * len(labels)}')
    for variant in {name: None for plan in plans for name in plan}:
        of_variant = [plan[variant] for plan in plans if variant in plan]
        cells = []
        for stages in zip(*of_variant):  # of all seeds
            if not stages[0].metrics:
                continue  # it need not have been trained, where what starts from it is known
            of_seeds = [dict(training.shares) for training in stages]
            for label in stages[0].metrics.values():
                values = [shares[label] for shares in of_seeds if label in shares]
                shown = ', '.join(f'{value:.3f}' for value in values)
                cells.append(f'{statistics.mean(values):.3f} ({shown})' if values else '–')
        if study.scale:
            cells += [place(study.scale, variant, base, plans) for base in (study.scale.low, study.scale.chance)]
        if study.flops_size:
            last = of_variant[0][-1]
            config = Config.fromfile(ROOT / last.config)
            config.merge_from_dict(parse_options(last.options))
            with tempfile.NamedTemporaryFile('w', suffix='.py') as file:
                file.write(config.pretty_text)
                file.flush()
                cells.append(f'{count(file.name, study.flops_size, "neck").flops[""] / 1e6:.0f}')
        print(f'| {variant} | {" | ".join(cells)} |')


def parse_options(options: Sequence[str]) -> dict[str, object]:
    """``--cfg-options`` as a config takes them."""
    parsed: dict[str, object] = {}
    for key, _, value in (option.partition('=') for option in options):
        try:
            parsed[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parsed[key] = value
    return parsed


def place(scale: Scale, variant: str, base: str, plans: Sequence[dict[str, list[Training]]]) -> str:
    """How far the first metric of a variant is above that of another, as a share of the gap between low and high.

    The gap is that of the means of the seeds that have both ends, since that of a seed may be small; the interval is
    that of a mean of differences paired by seed, by Student's t.
    """
    ends = differences(scale.high, scale.low, plans)
    values = differences(variant, base, plans)
    if not ends or not values or variant == base:
        return '–'
    shares = [value / statistics.mean(ends) for value in values]
    if len(shares) == 1:
        return f'{shares[0]:.2f}'
    half, mean = half_width(shares), statistics.mean(shares)
    return f'{mean:.2f} ({mean - half:.2f}–{mean + half:.2f})'


def differences(name: str, other: str, plans: Sequence[dict[str, list[Training]]]) -> list[float]:
    """How far a variant is ahead of another in its first metric, for each seed that has both."""
    pairs = [(plan[name][-1], plan[other][-1]) for plan in plans if name in plan and other in plan]
    return [next(one.shares)[1] - next(two.shares)[1] for one, two in pairs]


def print_differences(study: Study, plans: Sequence[dict[str, list[Training]]]) -> None:
    """Mean of the differences that the study asks for, with its 95 % interval by Student's t."""
    for name, other in study.differences:
        values = differences(name, other, plans)
        if not values:
            continue  # no seed has both
        mean, half = statistics.mean(values), half_width(values) if len(values) > 1 else float('nan')
        print(f'{name!r} − {other!r}: {mean:.3f} ({mean - half:.3f} to {mean + half:.3f})')


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', choices=STUDIES)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time; default: one a core')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/studies'), help='default: work_dirs/studies')
    parser.add_argument('--results', type=Path, help='default: docs/studies/STUDY.json')
    args = parser.parse_args(argv)

    study = STUDIES[args.study]
    for words in study.data:
        run_script('tools/data/make_mini.py', *words)
    folder = (ROOT / args.work_dir / args.study).resolve()
    plans = [plan(study, seed, folder) for seed in args.seeds]
    trainings = [t for variants in plans for stage in zip_longest(*variants.values()) for t in stage if t]
    results = args.results or ROOT / 'docs/studies' / f'{args.study}.json'
    # Tests last, when there is what to test.
    run_all(sorted(trainings, key=lambda training: isinstance(training, Test)), args.jobs, results)
    print_table(study, plans)
    print_differences(study, plans)


if __name__ == '__main__':
    main()
