import json
import os
import signal
import subprocess
import sys

import pytest

from .conftest import TOOLS, load_tool

demo = load_tool('demo')


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that the demo runs; a training is stopped after its first checkpoint, another one ends."""
    recorded = []

    def run(*words):
        words = list(map(str, words))
        recorded.append(words)
        if 'tools/train.py' in words:
            (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_100.pth'))
            if '--resume' not in words:
                sys.exit('stopped')
        else:
            folder = tmp_path / 'test/20260101_000000'
            folder.mkdir(parents=True)
            (folder / '20260101_000000.json').write_text(json.dumps({'mIoU': 50.0, 'aAcc': 80.0}))

    monkeypatch.setattr(demo, 'run', run)
    return recorded


def test_goes_on_where_it_stopped(commands, tmp_path):
    task = demo.TASKS[0]
    with pytest.raises(SystemExit):
        demo.train_and_test(task, tmp_path, ['randomness.seed=0'])
    assert len(commands) == 1 and '--resume' not in commands[0]

    results = demo.train_and_test(task, tmp_path, ['randomness.seed=0'])
    assert results == {'mIoU': 50.0, 'aAcc': 80.0}
    train, test = commands[1:]
    assert '--resume' in train and 'tools/test.py' in test and str(tmp_path / 'iter_100.pth') in test
    size = next(word for word in train if word.startswith('train_dataloader.batch_size='))
    assert int(size.split('=')[1]) * demo.PROCESSES == 8

    assert demo.train_and_test(task, tmp_path, ['randomness.seed=0']) == results
    assert len(commands) == 3  # nothing was left to do


def test_interrupt_ends_with_a_line_that_says_how_to_go_on():
    script = (
        f'import sys; sys.path.insert(0, {str(TOOLS)!r}); import demo; '
        "demo.run('-c', 'import time; print(1, flush=True); time.sleep(60)')"
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.stdout.readline() != '1\n':
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.endswith('stopped; the same command goes on from the last checkpoint\n')
