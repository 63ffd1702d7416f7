"""Checkpoints are whole or not there."""

import os
import resource
import signal
from pathlib import Path

from mmvisattn.engine.durable_checkpoint_hook import DurableBackend
from mmvisattn.errors import UserError

import pytest

from .test_resume_hook import build, train


def test_what_is_written_is_there(tmp_path):
    DurableBackend().put(b'weights', tmp_path / 'new/epoch_1.pth')
    assert (tmp_path / 'new/epoch_1.pth').read_bytes() == b'weights'
    assert len(list((tmp_path / 'new').iterdir())) == 1


def test_the_name_comes_when_the_disk_has_it_all(tmp_path, monkeypatch):
    seen = []

    def fsync(descriptor):
        seen.append((os.readlink(f'/proc/self/fd/{descriptor}'), (tmp_path / 'a.pth').exists()))

    monkeypatch.setattr(os, 'fsync', fsync)
    DurableBackend().put(b'weights', tmp_path / 'a.pth')
    assert seen == [(str(tmp_path / 'a.pth.part'), False), (str(tmp_path), True)]


def test_a_disk_that_is_full(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'the one before')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(UserError, match=r'a\.pth. of 2\.0 MiB cannot be written: .*make room.*--resume'):
            DurableBackend().put(bytes(2**21), tmp_path / 'a.pth')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
    assert (tmp_path / 'a.pth').read_bytes() == b'the one before'


def test_the_oldest_goes_when_the_newest_is_there(tmp_path, monkeypatch):
    put, there = DurableBackend.put, []

    def look(backend, obj, path):
        there.append({path.name for path in tmp_path.glob('*.pth')})
        put(backend, obj, path)

    monkeypatch.setattr(DurableBackend, 'put', look)
    hook = dict(type='mmvisattn.DurableCheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=1)
    runner = build(tmp_path, 4, seed=1)
    runner.hooks[:] = [old for old in runner.hooks if type(old).__name__ != 'DurableCheckpointHook']
    runner.register_hook(hook)
    runner.train()
    assert there == [set(), {'iter_1.pth'}, {'iter_2.pth'}, {'iter_3.pth'}]
    assert {path.name for path in tmp_path.glob('*.pth')} == {'iter_4.pth'}
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == 'iter_4.pth'


def test_files_elsewhere_are_left_to_their_backend(tmp_path):
    runner = train(tmp_path, 1, seed=1)
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'DurableCheckpointHook']
    assert hook.backend_args == dict(backend='mmvisattn_durable')
    hook.backend_args = dict(backend='local')
    hook.before_train(runner)
    assert hook.backend_args == dict(backend='local')
