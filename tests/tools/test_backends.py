"""A training that writes for TensorBoard and Weights & Biases; `make test-backends` installs both."""

import pytest
from mmengine.config import Config

from .utils import TOOLS, read_log, run_command


@pytest.mark.slow
def test_tensorboard_and_wandb_have_the_figures_of_the_log(seg_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = Config.fromfile(seg_config)
    backends = [
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
        dict(type='WandbVisBackend', init_kwargs=dict(project='mini', mode='offline')),
    ]
    cfg.visualizer.vis_backends = backends
    config, work_dir = tmp_path / 'backends.py', tmp_path / 'work'
    cfg.dump(str(config))
    done = run_command('python', TOOLS / 'train.py', config, '--work-dir', work_dir)
    assert done.returncode == 0, done.stderr
    lines = read_log(work_dir)
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 6

    (events,) = work_dir.rglob('events.out.tfevents.*')
    board = EventAccumulator(str(events)).Reload()
    assert [event.value for event in board.Scalars('loss')] == pytest.approx(losses, rel=1e-4)
    assert [event.value for event in board.Scalars('mIoU')] == pytest.approx([lines[-1]['mIoU']])
    (run,) = work_dir.rglob('offline-run-*')
    (written,) = run.glob('*.wandb')
    content = written.read_bytes()
    assert all(name in content for name in (b'loss', b'mIoU', b'FCViT'))
