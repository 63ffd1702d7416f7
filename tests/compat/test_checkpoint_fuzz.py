"""Changed checkpoints: each loads as it was saved or is refused in one line, and none runs code."""

import builtins
import io
import os
import pickle
import random
import subprocess
import zipfile

from mmvisattn.compat import checkpoint

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from .test_checkpoint import equal

CONTENT = {
    'meta': dict(epoch=3, iter=12, cfg='model = dict()\n' * 20, seed=0, dataset_meta=dict(classes=('a', 'b'))),
    'state_dict': {f'layers.{i}.weight': torch.arange(24.0).reshape(4, 6) + i for i in range(6)},
    'optimizer': dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1, params=[0])]),
    'message_hub': dict(log_scalars=dict(loss=HistoryBuffer([0.5, 0.25], [1, 1])), best=np.float64(0.5)),
}


def saved() -> bytes:
    stream = io.BytesIO()
    torch.save(CONTENT, stream)
    return stream.getvalue()


WHOLE = saved()


@pytest.fixture
def no_code(monkeypatch):
    """Whatever a file could start ends the test."""

    def caught(*args, **kwargs):
        pytest.fail(f'a file ran code: {args}')

    for module, names in ((os, ('system', 'popen')), (subprocess, ('Popen',)), (builtins, ('eval',))):
        for name in names:
            monkeypatch.setattr(module, name, caught)


def check(data: bytes, path, whole: object = CONTENT) -> bool:
    """Whether a file was refused; it is wrong for it to load as anything else than what was saved."""
    path.write_bytes(data)
    try:
        loaded = checkpoint.load(path)
    except pickle.UnpicklingError as error:
        assert str(path) in str(error) and '\n' not in str(error), error
        return True
    assert equal(loaded, whole)
    return False


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One of the ways in which files are damaged."""
    changed = bytearray(data)
    place = dice.randrange(len(data))
    way = dice.choice(['bit', 'byte', 'cut', 'hole', 'zeros', 'more', 'twice', 'swap', 'head', 'tail'])
    length = dice.randrange(1, 200)
    if way == 'bit':
        changed[place] ^= 1 << dice.randrange(8)
    elif way == 'byte':
        changed[place] = dice.randrange(256)
    elif way == 'cut':
        del changed[place:]
    elif way == 'hole':
        del changed[place : place + length]
    elif way == 'zeros':
        changed[place : place + length] = bytes(len(changed[place : place + length]))
    elif way == 'more':
        changed[place:place] = dice.randbytes(length)
    elif way == 'twice':
        changed[place:place] = changed[place : place + length]
    elif way == 'swap':
        other = dice.randrange(len(data))
        changed[place], changed[other] = changed[other], changed[place]
    elif way == 'head':
        del changed[:length]
    else:
        changed += dice.randbytes(length)
    return bytes(changed)


@pytest.mark.parametrize('count', [40, pytest.param(1000, marks=pytest.mark.slow)], ids=['forty', 'thousand'])
def test_changed_archives(count, tmp_path, no_code):
    dice, refused = random.Random(count), 0
    for _ in range(count):
        refused += check(mutate(WHOLE, dice), tmp_path / 'file.pth')
    print(f'{count} changed checkpoints: {refused} refused in one line, {count - refused} loaded as they were saved')
    assert refused > 0.7 * count


@pytest.mark.parametrize('count', [40, pytest.param(1000, marks=pytest.mark.slow)], ids=['forty', 'thousand'])
def test_changed_pickles_in_whole_archives(count, tmp_path, no_code):
    """As from somebody who knows about checksums: what loads may be anything, but runs nothing."""
    dice, refused = random.Random(count), 0
    for _ in range(count):
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(WHOLE)) as source, zipfile.ZipFile(stream, 'w') as target:
            for item in source.infolist():
                part = source.read(item)
                target.writestr(item, mutate(part, dice) if item.filename.endswith('data.pkl') else part)
        (tmp_path / 'file.pth').write_bytes(stream.getvalue())
        try:
            checkpoint.load(tmp_path / 'file.pth')
        except pickle.UnpicklingError as error:
            refused += 1
            assert '\n' not in str(error)
    print(f'{count} archives with changed pickles: {refused} refused in one line, {count - refused} loaded')
    assert refused > 0.5 * count


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
@pytest.mark.parametrize('start', [b'', b'PK\x03\x04', b'\x80\x02'], ids=['any', 'archive', 'pickle'])
def test_any_bytes(start, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / 'any.pth'
    path.write_bytes(start + data)
    try:
        checkpoint.load(path)
    except pickle.UnpicklingError as error:
        assert '\n' not in str(error)
