"""What the trainings share."""

import json
import os
from pathlib import Path

from tests import processes

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 60


def run(*command) -> None:
    result = processes.run([str(word) for word in command], ROOT, dict(os.environ), timeout=30 * MINUTES)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def train(config: str, work_dir: Path, *options: str, flags: tuple[str, ...] = ()) -> tuple[list[dict], dict]:
    """The scalars that a training with some flags logged, and the metrics of a test of its last checkpoint."""
    run('tools/train.py', config, '--work-dir', work_dir, *flags, '--cfg-options', *options)
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    scalars = [json.loads(line) for line in log.read_text().splitlines()]
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    run('tools/test.py', config, checkpoint, '--work-dir', work_dir / 'test', '--cfg-options', *options)
    (result,) = (work_dir / 'test').glob('*/*.json')
    return [line for line in scalars if 'loss' in line], json.loads(result.read_text())


def coco_options(data: Path) -> list[str]:
    """Where detectors find the scenes."""
    coco = f'{data}/coco/'
    return [
        *(f'{name}_dataloader.dataset.data_root={coco}' for name in ('train', 'val', 'test')),
        *(f'{name}_evaluator.ann_file={coco}annotations/instances_val2017.json' for name in ('val', 'test')),
    ]


def ade_options(data: Path) -> list[str]:
    """Where segmentors find the scenes."""
    root = data / 'ade/ADEChallengeData2016'
    return [f'{name}_dataloader.dataset.data_root={root}' for name in ('train', 'val', 'test')]


def short(length: int, unit: str) -> list[str]:
    """A schedule of so many epochs or iterations, logged often, loaded by one process."""
    period = ['param_scheduler.1.T_max=' + str(length)] if unit == 'epochs' else []
    return [
        *(f'train_cfg.max_{unit}={length}', f'param_scheduler.1.end={length}'),
        *(f'val_{part}=None' for part in ('cfg', 'dataloader', 'evaluator')),  # the test comes after it
        *(*period, 'randomness.seed=0', 'default_hooks.logger.interval=20'),
        *('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
    ]


# Pictures of 192×160 pixels, for configs that enlarge them more.
SMALL_DETECTOR = [
    f'{name}_dataloader.dataset.pipeline.{place}.scale=(192,160)'
    for name, place in dict(train=2, val=1, test=1).items()
]
SMALL_SEGMENTOR = [*SMALL_DETECTOR, 'model.data_preprocessor.size=(160,192)']
