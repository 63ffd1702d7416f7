"""Trainings that stop anywhere and go on, against those that never stopped."""

import itertools
import random
from contextlib import suppress

from mmvisattn.compat import checkpoint
from mmvisattn.engine.data_position import Skipped
from mmvisattn.engine.random_states import get_random_states, set_random_states
from mmvisattn.errors import UserError

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
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=lr)) | (optim_wrapper or {}),
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
    for stop in (5, 9) if by_epoch else (3, length - 2):
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


def test_what_is_done_is_dropped_one_by_one_or_at_once():
    one_by_one, at_once = Skipped(iter('ab'), 3), Skipped(iter('ab'), 3)
    assert [next(one_by_one) for _ in range(3)] == [None] * 3
    at_once.skip_iter(3)
    assert next(one_by_one) == next(at_once) == 'a'


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


COSINE = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, convert_to_iter_based=True),
]


def rates(runner):
    return runner.message_hub.get_scalar('train/lr').data[0].tolist()


@pytest.mark.parametrize(
    'schedules',
    [
        lambda length: [COSINE[0], dict(COSINE[1], T_max=length)],
        lambda length: [dict(type='PolyLR', power=0.9, by_epoch=True, begin=0, end=length)],
    ],
    ids=['iterations', 'epochs'],
)
def test_resume_with_a_longer_schedule(schedules, tmp_path, told):
    options = dict(by_epoch=True, seed=1)
    train(tmp_path / 'short', 4, schedule=schedules(4), **options)
    whole = train(tmp_path / 'long', 8, schedule=schedules(8), **options)
    start = dict(load_from=str(tmp_path / 'short/epoch_4.pth'), resume=True)
    resumed = train(tmp_path / 'resumed', 8, schedule=schedules(8), **options, **start)
    assert rates(resumed)[-16:] == pytest.approx(rates(whole)[-16:], rel=1e-9)
    (line,) = told
    assert 'then, ' in line and 'those of the config are taken' in line


def test_resume_with_a_shorter_one_says_that_nothing_is_left(tmp_path, told):
    train(tmp_path, 4, by_epoch=True, seed=1)
    train(tmp_path, 3, by_epoch=True, seed=1, resume=True)
    (line,) = told
    assert 'epoch 4 of 3: nothing is left to train; set `train_cfg.max_epochs`' in line


def test_resume_with_another_batch_size(tmp_path, told):
    schedule = [dict(COSINE[1], T_max=6)]
    train(tmp_path / 'then', 4, by_epoch=True, schedule=schedule, seed=1)
    whole = train(tmp_path / 'whole', 6, by_epoch=True, schedule=schedule, seed=1, batch_size=4, lr=0.02)
    start = dict(load_from=str(tmp_path / 'then/epoch_4.pth'), resume=True)
    options = dict(by_epoch=True, schedule=schedule, seed=1, batch_size=4, lr=0.02)
    resumed = train(tmp_path / 'now', 6, **options, **start)
    assert resumed.iter == whole.iter == 6 * 3
    assert rates(resumed)[-6:] == pytest.approx(rates(whole)[-6:], rel=1e-9)
    assert 'another batch size: 3 then, 4 now' in told[0]
    assert 'an epoch has 3 batches now: iteration 16 then is 12 now' in told[1]
    assert 'initial_lr 0.01 then, 0.02 now' in told[2]


def test_resume_with_other_weight_decay_takes_the_config_s(tmp_path, told):
    train(tmp_path, 3, seed=1, schedule=[dict(type='PolyLR', by_epoch=False, end=9)])
    optimizer = dict(type='AdamW', lr=0.01, weight_decay=0.5)
    schedule = [dict(type='PolyLR', by_epoch=False, end=9)]
    resumed = train(tmp_path, 5, seed=1, schedule=schedule, optim_wrapper=dict(optimizer=optimizer), resume=True)
    assert resumed.optim_wrapper.param_groups[0]['weight_decay'] == 0.5
    (line,) = told
    assert 'weight_decay 0.01 then, 0.5 now' in line


def test_resume_with_a_group_for_each_parameter(tmp_path, told):
    """As layer-wise decay has them; mmengine adds a group to its own list, and none to the checkpoint's."""

    def run(folder, iterations, lr=0.01, **kwargs):
        wrapper = dict(optimizer=dict(type='AdamW', lr=lr, weight_decay=0.1), paramwise_cfg=dict(norm_decay_mult=0.0))
        schedule = [dict(type='PolyLR', by_epoch=False, end=9)]
        return train(folder, iterations, seed=1, schedule=schedule, optim_wrapper=wrapper, **kwargs).optim_wrapper

    whole = run(tmp_path / 'whole', 6)
    run(tmp_path / 'parts', 3)
    resumed = run(tmp_path / 'parts', 6, resume=True)
    assert told == [] and len(resumed.optimizer.param_groups) == 6
    assert resumed.get_lr() == whole.get_lr()
    for one, two in zip(whole.optimizer.param_groups, resumed.optimizer.param_groups):
        torch.testing.assert_close(one['params'], two['params'], rtol=0, atol=0)
    run(tmp_path / 'other', 3)
    other = run(tmp_path / 'other', 6, lr=0.02, resume=True)
    assert 'lr' in told[0] and other.get_lr() == {key: [2 * lr for lr in lrs] for key, lrs in whole.get_lr().items()}


def test_resume_with_another_optimizer_is_refused(tmp_path):
    train(tmp_path, 2, seed=1)
    other = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1), paramwise_cfg=dict(norm_decay_mult=0.0))
    with pytest.raises(UserError, match='6 parameters in 1 groups'):
        train(tmp_path, 4, seed=1, optim_wrapper=other, resume=True)


def test_resume_with_other_workers_is_told(tmp_path, told):
    train(tmp_path, 2, seed=1)
    train(tmp_path, 3, seed=1, num_workers=1, resume=True)
    assert told == [
        'resumed with another number of workers: 0 then, 1 now; their random numbers are others than they '
        'would have been'
    ]


@pytest.mark.parametrize(
    'schedule',
    [
        dict(type='OneCycleLR', eta_max=0.1, total_steps=20, by_epoch=False),
        dict(type='ReduceOnPlateauLR', monitor='score'),
    ],
    ids=lambda schedule: schedule['type'],
)
def test_unchanged_schedules_stay_as_saved(schedule, tmp_path, told):
    train(tmp_path, 3, Stop(6), by_epoch=True, seed=1, schedule=[schedule])
    train(tmp_path, 3, by_epoch=True, seed=1, schedule=[schedule], resume=True)
    assert told == []
