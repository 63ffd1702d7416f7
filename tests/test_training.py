"""Short real trainings through tools/train.py and tools/test.py: they must learn, not only run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MINUTES = 60


def run(*command) -> None:
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=12 * MINUTES
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Large, plain scenes of two things: what a network can learn in a minute."""
    folder = tmp_path_factory.mktemp('data') / 'mini'
    options = '--train 160 --val 24 --size 96 80 --classes 2 --objects 1 2 --shares 0 1 0 --empty 0 --crowd 0'
    run('tools/data/make_mini.py', folder, *options.split())
    return folder


def train(config: str, work_dir: Path, *options: str) -> tuple[list[dict], dict]:
    """The scalars that a training logged, and the metrics of a test of its last checkpoint."""
    run('tools/train.py', config, '--work-dir', work_dir, '--cfg-options', *options)
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    scalars = [json.loads(line) for line in log.read_text().splitlines()]
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    run('tools/test.py', config, checkpoint, '--work-dir', work_dir / 'test', '--cfg-options', *options)
    (result,) = (work_dir / 'test').glob('*/*.json')
    return [line for line in scalars if 'loss' in line], json.loads(result.read_text())


def test_mask_rcnn_learns(data, tmp_path):
    coco = f'{data}/coco/'
    datasets = [f'{name}_dataloader.dataset.data_root={coco}' for name in ('train', 'val', 'test')]
    evaluators = [f'{name}_evaluator.ann_file={coco}annotations/instances_val2017.json' for name in ('val', 'test')]
    schedule = ['train_cfg.max_epochs=8', 'param_scheduler.1.T_max=8', 'param_scheduler.1.end=8']
    scalars, metrics = train(
        'configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py',
        tmp_path,
        *datasets,
        *evaluators,
        *schedule,
        'train_cfg.val_interval=8',
        'randomness.seed=0',
        'default_hooks.logger.interval=20',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    )
    # The losses of boxes rise at first, as more proposals meet an object.
    assert scalars[-1]['loss_rpn_cls'] < 0.3 * scalars[0]['loss_rpn_cls']
    assert scalars[-1]['loss_mask'] < 0.8 * scalars[0]['loss_mask']
    # An untrained detector finds nothing.
    assert metrics['coco/bbox_mAP_50'] > 0.3
    assert metrics['coco/segm_mAP_50'] > 0.04


def test_semantic_fpn_learns(data, tmp_path):
    root = data / 'ade/ADEChallengeData2016'
    scalars, metrics = train(
        'configs/mini/fcvit-mini_fpn_ade20k.py',
        tmp_path,
        *(f'{name}_dataloader.dataset.data_root={root}' for name in ('train', 'val', 'test')),
        'train_cfg.max_iters=120',
        'train_cfg.val_interval=120',
        'param_scheduler.1.end=120',
        'randomness.seed=0',
        'default_hooks.logger.interval=20',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    )
    assert scalars[-1]['loss'] < 0.7 * scalars[0]['loss']
    # Calling everything by the name of one class would give one of seven a part of 100.
    assert metrics['mIoU'] > 30
