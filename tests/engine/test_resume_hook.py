"""Trainings that stop anywhere and go on, against those that never stopped."""

import itertools
import random
from contextlib import suppress

from mmvisattn.compat import checkpoint
from mmvisattn.engine.random_states import get_random_states, set_random_states

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from torch import nn

RUNS = itertools.count()  # each has a log of its own


@DATASETS.register_module()
class Noisy(torch.utils.data.Dataset):
    """Samples whose noise is drawn from each of the three generators, where they are loaded."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(4)
        return dict(inputs=index + noise)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, inputs, mode='tensor'):
        inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if mode == 'loss':
            return dict(loss=self.layers(inputs).square().mean())
        return [torch.rand(1).item() for _ in inputs]  # also validation draws


@METRICS.register_module()
class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return dict(score=float(np.mean(results)))


class Stop(Hook):
    """Ends the run after so many iterations, when all other hooks are done."""

    priority = 'LOWEST'

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt


TRAININGS = dict(
    iterations=dict(length=10),
    workers=dict(length=10, num_workers=2),
    finite=dict(length=6, sampler='DefaultSampler', num_workers=2, interval=2),
    epochs=dict(length=4, by_epoch=True),
    epochs_workers=dict(length=4, by_epoch=True, num_workers=2, persistent=False),
    epochs_lasting_workers=dict(length=4, by_epoch=True, num_workers=3),
    accumulation=dict(length=10, optim_wrapper=dict(accumulative_counts=4)),
)


def build(
    folder,
    length,
    *hooks,
    by_epoch=False,
    num_workers=0,
    persistent=True,
    interval=None,
    sampler=None,
    batch_size=3,
    seed=None,
    schedule=None,
    optim_wrapper=None,
    hook=True,
    lr=0.01,
    **arguments,
):
    sampler = sampler or ('DefaultSampler' if by_epoch else 'InfiniteSampler')
    loader = dict(
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        dataset=dict(type='Noisy'),
        sampler=dict(type=sampler, shuffle=True),
    )
    train_cfg = dict(by_epoch=by_epoch, val_interval=2 if by_epoch else 5)
    train_cfg['max_epochs' if by_epoch else 'max_iters'] = length
    torch.manual_seed(0)
    return Runner(
        model=Model(),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=train_cfg,
        val_dataloader=dict(dataset=dict(type='Noisy'), sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=dict(type='Score'),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=lr), **(optim_wrapper or {})),
        param_scheduler=schedule or [],
        randomness=dict(seed=seed),
        default_hooks=dict(
            checkpoint=dict(type='mmvisattn.DurableCheckpointHook', by_epoch=by_epoch, interval=interval or 1),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[*([dict(type='mmvisattn.ResumeHook')] if hook else []), *hooks],
        experiment_name=f'resume {next(RUNS)}',
        log_level='WARNING',
        **arguments,
    )


def train(*args, **kwargs):
    """Build and run up to the end or the stop."""
    runner = build(*args, **kwargs)
    with suppress(KeyboardInterrupt):
        runner.train()
    # The workers end now, and not when the garbage is collected, which first closes the queues that they wait at.
    runner.train_loop.dataloader_iterator = runner.train_dataloader._iterator = None
    return runner


def weights(folder, name):
    return checkpoint.load(folder / name)['state_dict']


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.fixture
def told(monkeypatch):
    """What the log warns of."""
    messages = []
    for module in ('resume_hook', 'resume_schedule'):
        monkeypatch.setattr(f'mmvisattn.engine.{module}.tell', messages.append)
    return messages


@pytest.mark.parametrize('name', TRAININGS)
def test_resumed_training_has_the_same_weights(name, tmp_path, told):
    training = TRAININGS[name]
    by_epoch, length = training.get('by_epoch'), training['length']
    last = f'{"epoch" if by_epoch else "iter"}_{length}.pth'
    train(tmp_path / 'whole', **training, seed=1)
    # Stopped twice, and each time in the middle of what the checkpoint before does not have.
    for stop in (5, 9) if by_epoch else (3, 8):
        train(tmp_path / 'parts', length, Stop(stop), **rest(training), seed=1, resume=True)
    train(tmp_path / 'parts', **training, seed=1, resume=True)
    assert told == []
    assert_same(weights(tmp_path / 'whole', last), weights(tmp_path / 'parts', last))


def rest(training):
    return {key: value for key, value in training.items() if key != 'length'}


def test_without_the_hook_it_has_not(tmp_path):
    # What the test above would see; should mmengine once restore it all, the hook may go.
    train(tmp_path / 'whole', 6, seed=1, hook=False)
    train(tmp_path / 'parts', 6, Stop(3), seed=1, hook=False)
    train(tmp_path / 'parts', 6, seed=1, hook=False, resume=True)
    whole, parts = (weights(tmp_path / folder, 'iter_6.pth') for folder in ('whole', 'parts'))
    assert not torch.equal(whole['layers.0.weight'], parts['layers.0.weight'])


def test_seed_that_was_drawn_is_kept(tmp_path, told):
    train(tmp_path, 6, Stop(4), num_workers=1)
    once, twice = (dict(load_from=str(tmp_path / 'iter_2.pth'), resume=True, num_workers=1) for _ in range(2))
    train(tmp_path / 'once', 6, **once)
    train(tmp_path / 'twice', 6, **twice)
    assert_same(weights(tmp_path / 'once', 'iter_6.pth'), weights(tmp_path / 'twice', 'iter_6.pth'))
    assert_same(weights(tmp_path, 'iter_3.pth'), weights(tmp_path / 'once', 'iter_3.pth'))


def test_place_is_found_without_reading_the_data(tmp_path, monkeypatch):
    train(tmp_path, 6, seed=1)
    read = []
    monkeypatch.setattr(Noisy, '__getitem__', lambda self, index: read.append(index) or dict(inputs=torch.rand(4)))
    train(tmp_path, 8, seed=1, resume=True)
    assert len(read) == 2 * 3 + 11  # two batches and the validation at the end


def test_checkpoint_amid_an_epoch(tmp_path, told):
    amid = dict(type='mmvisattn.DurableCheckpointHook', by_epoch=False, interval=2)
    for workers in (0, 2):
        whole, parts = tmp_path / f'whole{workers}', tmp_path / f'parts{workers}'
        train(whole, 3, dict(amid), by_epoch=True, num_workers=workers, seed=1)
        train(parts, 3, dict(amid), Stop(7), by_epoch=True, num_workers=workers, seed=1)
        options = dict(by_epoch=True, num_workers=workers, seed=1, resume=True, load_from=str(parts / 'iter_6.pth'))
        train(parts, 3, **options)
        assert_same(weights(whole, 'epoch_3.pth'), weights(parts, 'epoch_3.pth'))
        assert checkpoint.load(parts / 'epoch_3.pth')['meta']['iter'] == 12


def test_validation_that_was_killed_is_done(tmp_path):
    class Killed(Hook):
        def before_val_epoch(self, runner):
            raise KeyboardInterrupt

    train(tmp_path, 5, Killed(), seed=1)
    resumed = train(tmp_path, 5, seed=1, resume=True)
    assert resumed.message_hub.get_scalar('val/score').data[0].size == 1


def test_random_states():
    states = get_random_states()
    drawn = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1)]
    set_random_states(states)
    assert drawn == [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1)]
