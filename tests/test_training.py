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
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=30 * MINUTES
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    """The scenes that the configs are made for."""
    folder = tmp_path_factory.mktemp('scenes') / 'mini'
    run('tools/data/make_mini.py', folder)
    return folder


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
        *(f'train_cfg.max_{unit}={length}', f'train_cfg.val_interval={length}', f'param_scheduler.1.end={length}'),
        *(*period, 'randomness.seed=0', 'default_hooks.logger.interval=20'),
        *('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
    ]


# Pictures of 192×160 pixels, for configs that enlarge them more.
SMALL_DETECTOR = [
    f'{name}_dataloader.dataset.pipeline.{place}.scale=(192,160)'
    for name, place in dict(train=2, val=1, test=1).items()
]
SMALL_SEGMENTOR = [*SMALL_DETECTOR, 'model.data_preprocessor.size=(160,192)']


@pytest.mark.parametrize(
    ('config', 'epochs', 'box', 'mask'),
    [
        ('mask-rcnn_fcvit-mini_fpn_coco', 8, 0.3, 0.04),
        ('mask-rcnn_defocus-mamba-mini_simple-fpn_coco', 8, 0.15, 0.02),
    ],
)
def test_mask_rcnn_learns(data, tmp_path, config, epochs, box, mask):
    options = [*coco_options(data), *short(epochs, 'epochs'), *(SMALL_DETECTOR if 'defocus' in config else [])]
    scalars, metrics = train(f'configs/mini/{config}.py', tmp_path, *options)
    # The losses of boxes rise at first, as more proposals meet an object.
    assert scalars[-1]['loss_rpn_cls'] < 0.3 * scalars[0]['loss_rpn_cls']
    assert scalars[-1]['loss_mask'] < 0.8 * scalars[0]['loss_mask']
    # An untrained detector finds nothing.
    assert metrics['coco/bbox_mAP_50'] > box, metrics
    assert metrics['coco/segm_mAP_50'] > mask, metrics


@pytest.mark.parametrize('config', ['fcvit-mini_fpn_ade20k', 'defocus-retnet-mini_upernet_ade20k'])
def test_segmentor_learns(data, tmp_path, config):
    options = [*ade_options(data), *short(120, 'iters'), *(SMALL_SEGMENTOR if 'defocus' in config else [])]
    scalars, metrics = train(f'configs/mini/{config}.py', tmp_path, *options)
    assert scalars[-1]['loss'] < 0.7 * scalars[0]['loss']
    # Calling everything by the name of one class would give one of seven a part of 100.
    assert metrics['mIoU'] > 30, metrics


@pytest.mark.slow
@pytest.mark.timeout(90 * MINUTES)
@pytest.mark.parametrize('form', ['mamba', 'vit', 'retnet'])
def test_defocus_learns_the_scenes(scenes, tmp_path, form):
    segmentor, detector = tmp_path / 'segmentor', tmp_path / 'detector'
    config = f'configs/mini/defocus-{form}-mini_upernet_ade20k.py'
    _, metrics = train(config, segmentor, *ade_options(scenes), 'randomness.seed=0')
    assert metrics['mIoU'] >= 40
    start = (segmentor / 'last_checkpoint').read_text().strip()
    config = f'configs/mini/mask-rcnn_defocus-{form}-mini_simple-fpn_coco.py'
    _, metrics = train(config, detector, *coco_options(scenes), f'load_from={start}', 'randomness.seed=0')
    assert metrics['coco/bbox_mAP_50'] >= 0.4
