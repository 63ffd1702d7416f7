import argparse
import collections
import os
import pickle
import re
from pathlib import Path

from mmvisattn.compat import checkpoint
from mmvisattn.compat.checkpoint import UnsafeCheckpointError

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

# ----------------------------------------------------------------------------- what is let through


def history():
    buffer = HistoryBuffer()
    for value in np.random.default_rng(0).normal(size=5):
        buffer.update(float(value))
    return buffer


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, HistoryBuffer):
        return all(np.array_equal(*pair) for pair in zip(a.data, b.data)) and a.mean() == b.mean()
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    'value',
    [
        torch.randn(3, 4),
        nn.Parameter(torch.randn(3)),
        collections.OrderedDict(weight=torch.randn(2, 2).half()),
        history(),
        np.arange(6.0).reshape(2, 3),
        np.array([[1, 2], [3, 4]], dtype=np.uint8),
        np.array(['a', 'bc']),
        np.array([True, False]),
        np.float64(0.25),
        np.float32(0.5),
        np.int64(7),
        ConfigDict(classes=('a', 'b'), palette=[(1, 2, 3)], nested=dict(key=1)),
        argparse.Namespace(lr=1e-3, model='fcvit_b12', opt_betas=None, dist=argparse.Namespace(rank=0)),
        dict(meta=dict(epoch=3, dataset_meta=dict(CLASSES=('a', 'b'), PALETTE=np.eye(3)))),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize('zipped', [True, False])
def test_what_checkpoints_hold(value, zipped, tmp_path):
    torch.save({'value': value}, tmp_path / 'file.pth', _use_new_zipfile_serialization=zipped)
    loaded = mmengine_checkpoint._load_checkpoint(str(tmp_path / 'file.pth'), map_location='cpu')['value']
    assert equal(loaded, value)


@pytest.mark.parametrize('package', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_arrays_of_either_numpy(package, tmp_path):
    torch.save([np.arange(3.0), np.float64(2)], tmp_path / 'file.pth', _use_new_zipfile_serialization=False)
    data = (tmp_path / 'file.pth').read_bytes()
    for written in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
        data = data.replace(written, b'WRITTEN')
    assert b'WRITTEN' in data
    (tmp_path / 'file.pth').write_bytes(data.replace(b'WRITTEN', package.encode()))
    array, scalar = checkpoint.load(tmp_path / 'file.pth')
    assert array.tolist() == [0, 1, 2] and scalar == 2


def test_map_location_and_open_file(tmp_path):
    torch.save(torch.ones(2), tmp_path / 'file.pth')
    assert checkpoint.load(tmp_path / 'file.pth', 'meta').device.type == 'meta'
    with open(tmp_path / 'file.pth', 'rb') as file:
        assert torch.equal(checkpoint.load(file), torch.ones(2))


def test_mmengine_keeps_torch():
    assert mmengine_checkpoint.torch.Tensor is torch.Tensor
    assert mmengine_checkpoint.torch.save is torch.save


# ----------------------------------------------------------------------------- what is refused


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stranger:
    """A class without harm, which no list knows."""


def payloads(marker):
    return {
        'os': Payload(os.system, f'touch {marker}'),
        'exec': Payload(exec, f'open({str(marker)!r}, "w").close()'),
        'eval': Payload(eval, f'open({str(marker)!r}, "w").close()'),
        'open': Payload(open, str(marker), 'w'),
        'pathlib': Payload(Path.touch, Path(marker)),
        # By way of what the list does let through.
        'getattr': Payload(getattr, argparse.ArgumentParser, 'parse_args'),
        'method': Payload(getattr, HistoryBuffer, '__init__'),
        'inside': argparse.Namespace(history=[Payload(os.system, f'touch {marker}')]),
        'stranger': Stranger(),
    }


NAMES = dict(
    os=r'(posix|nt)\.system',
    exec='exec',
    eval='eval',
    open=r'open',
    pathlib=r'getattr|pathlib',
    getattr=r'argparse\.ArgumentParser',
    method='getattr',
    inside=r'(posix|nt)\.system',
    stranger=r'test_checkpoint\.Stranger',
)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', NAMES)
def test_anything_executable_is_refused(kind, zipped, tmp_path):
    marker, file = tmp_path / 'it-ran', tmp_path / 'file.pth'
    content = {'state_dict': {'weight': torch.ones(2)}, 'payload': payloads(marker)[kind]}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    model = nn.Linear(1, 2, bias=False)
    before = model.weight.detach().clone()
    with pytest.raises(UnsafeCheckpointError) as error:
        load_checkpoint(model, str(file))
    assert not marker.exists()
    assert torch.equal(model.weight, before)
    message = str(error.value)
    assert str(file) in message and 'nothing in it was run' in message and 'add_safe_globals' in message
    assert re.search(f'it holds .*({NAMES[kind]})', message), message


def test_getattr_itself_is_never_allowed(tmp_path):
    """The maintained fork of mmengine allows it around its loading."""
    for kind in ('method', 'stranger'):
        torch.save(payloads(tmp_path)[kind], tmp_path / f'{kind}.pth')
    with torch.serialization.safe_globals([getattr, Stranger]):
        with pytest.raises(UnsafeCheckpointError, match='getattr'):
            checkpoint.load(tmp_path / 'method.pth')
        assert isinstance(checkpoint.load(tmp_path / 'stranger.pth'), Stranger)


def test_the_payloads_are_live(tmp_path):
    # What the test above would see if a file were simply unpickled.
    for kind in ('os', 'exec', 'eval', 'open', 'pathlib', 'inside'):
        marker = tmp_path / kind
        pickle.loads(pickle.dumps(payloads(marker)[kind], protocol=2))
        assert marker.exists(), kind


def test_users_may_allow_a_class(tmp_path):
    torch.save(Stranger(), tmp_path / 'file.pth')
    with torch.serialization.safe_globals([Stranger]):
        assert isinstance(mmengine_checkpoint._load_checkpoint(str(tmp_path / 'file.pth')), Stranger)


def test_downloads_are_checked_as_well(tmp_path):
    # Stock mmengine downloads through torch.hub, which does not check.
    cache = tmp_path / 'cache'
    torch.save({'state_dict': {'weight': torch.ones(2)}, 'log': history()}, tmp_path / 'good.pth')
    for _ in ('downloaded', 'cached'):
        loaded = mmengine_checkpoint.load_from_http((tmp_path / 'good.pth').as_uri(), model_dir=str(cache))
        assert torch.equal(loaded['state_dict']['weight'], torch.ones(2))
        (tmp_path / 'good.pth').unlink(missing_ok=True)

    marker = tmp_path / 'it-ran'
    torch.save(payloads(marker)['os'], tmp_path / 'bad.pth')
    with pytest.raises(UnsafeCheckpointError, match=r'cache/bad\.pth is refused'):
        mmengine_checkpoint.load_from_http((tmp_path / 'bad.pth').as_uri(), model_dir=str(cache))
    assert not marker.exists()


def test_environment_does_not_switch_the_check_off(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    marker = tmp_path / 'it-ran'
    torch.save(payloads(marker)['os'], tmp_path / 'bad.pth')
    with pytest.raises(UnsafeCheckpointError):
        mmengine_checkpoint._load_checkpoint(str(tmp_path / 'bad.pth'))
    assert not marker.exists()


@pytest.mark.parametrize('content', [b'<html>404</html>', b'\x80\x02garbage', b'not a checkpoint'])
def test_broken_file(content, tmp_path):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match='file.pth cannot be read as a checkpoint') as error:
        mmengine_checkpoint._load_checkpoint(str(tmp_path / 'file.pth'))
    assert not isinstance(error.value, UnsafeCheckpointError)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        mmengine_checkpoint._load_checkpoint(str(tmp_path / 'nowhere.pth'))


# ----------------------------------------------------------------------------- a real training run


class Data(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'), palette=np.arange(6).reshape(2, 3), task=ConfigDict(kind='test'))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(4, generator=generator))


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, inputs, mode='tensor'):
        loss = (self.layers(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return dict(loss=loss) if mode == 'loss' else loss


class BestScore(Hook):
    """Keeps what metrics and other hooks keep: numpy's numbers."""

    def after_train_epoch(self, runner):
        runner.message_hub.update_info('best_score', np.float64(0.5))
        runner.message_hub.update_scalar('val/score', np.float64(runner.epoch))


SCHEDULERS = dict(
    steps=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
        dict(type='MultiStepLR', milestones=[1, 3], gamma=0.5),
    ],
    cosine=[
        dict(type='CosineAnnealingLR', T_max=4, convert_to_iter_based=True),
        dict(type='CosineAnnealingMomentum', T_max=4),
    ],
    one_cycle=[dict(type='OneCycleLR', eta_max=0.1, total_steps=20, by_epoch=False)],
    poly=[dict(type='PolyLR', power=0.9, begin=0, end=4)],
    plateau=[dict(type='ReduceOnPlateauLR', monitor='loss', patience=1)],
)


def runner(folder, schedulers, optimizer, **arguments):
    torch.manual_seed(0)
    return Runner(
        model=Model(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=Data(),
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(optimizer=optimizer),
        param_scheduler=[dict(scheduler) for scheduler in schedulers],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2), logger=dict(type='LoggerHook', interval=1)
        ),
        custom_hooks=[dict(type='EMAHook'), BestScore()],
        experiment_name=str(folder),
        log_level='ERROR',
        **arguments,
    )


@pytest.mark.parametrize(
    ('schedule', 'optimizer'),
    [
        ('steps', dict(type='AdamW', lr=0.01)),
        ('cosine', dict(type='SGD', lr=0.01, momentum=0.9)),
        ('one_cycle', dict(type='SGD', lr=0.01, momentum=0.9)),
        ('poly', dict(type='RMSprop', lr=0.01)),
        ('plateau', dict(type='Adam', lr=0.01)),
    ],
)
def test_resumed_run_equals_uninterrupted_run(schedule, optimizer, tmp_path):
    schedulers = SCHEDULERS[schedule]
    runner(tmp_path / 'whole', schedulers, optimizer).train()
    half = str(tmp_path / 'whole' / 'epoch_2.pth')
    second = runner(tmp_path / 'rest', schedulers, optimizer, load_from=half, resume=True)
    second.train()
    assert second.epoch == 4 and second.iter == 8 and not (tmp_path / 'rest' / 'epoch_2.pth').exists()

    whole, parts = (checkpoint.load(tmp_path / folder / 'epoch_4.pth') for folder in ('whole', 'rest'))
    assert set(whole) == set(parts) >= {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub'}
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert equal(whole[key], parts[key]), key
    logs, resumed = (part['message_hub']['log_scalars'] for part in (whole, parts))
    assert {'train/loss', 'train/lr', 'val/score'} <= set(logs)
    for key in set(logs) - {'train/time', 'train/data_time', 'train/memory'}:
        assert len(resumed[key].data[0]) == len(logs[key].data[0]) > 0
        assert equal(logs[key], resumed[key]), key
    assert equal(whole['meta']['dataset_meta'], parts['meta']['dataset_meta'])
    assert resumed['train/loss'].statistics('min') < resumed['train/loss'].data[0][0]


def test_saved_checkpoint_is_one_that_stock_torch_refuses(tmp_path):
    # Should mmengine once save plain values alone, the allow-list may go.
    runner(tmp_path / 'run', SCHEDULERS['steps'], dict(type='SGD', lr=0.01)).train()
    file = tmp_path / 'run' / 'epoch_2.pth'
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert 'state_dict' in checkpoint.load(file)
