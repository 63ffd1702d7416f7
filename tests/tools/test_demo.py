import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from mmvisattn.errors import UserError

import pytest
import torch
from mmseg.evaluation import IoUMetric

from tools import demo, driver
from tools.analysis import report

from .utils import ROOT


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run; a training is stopped after its first checkpoint, another one ends."""
    recorded = []

    def run(*words, log=None, watch=None, **env):
        recorded.append(words)
        folder = Path(words[words.index('--work-dir') + 1])
        if 'tools/train.py' in words:
            torch.save({'weight': torch.ones(1)}, folder / 'iter_100.pth')
            if '--resume' not in words:
                raise KeyboardInterrupt
        else:
            folder = folder / '20260101_000000'
            folder.mkdir(parents=True)
            (folder / '20260101_000000.json').write_text(json.dumps({'mIoU': 0.8, 'aAcc': 80.0}))

    monkeypatch.setattr(driver, 'run_script', run)
    return recorded


def test_goes_on_where_it_stopped(commands, tmp_path):
    test, after = demo.plan(tmp_path, seed=0)
    with pytest.raises(KeyboardInterrupt):
        test.start.run()
    assert len(commands) == 1 and '--resume' not in commands[0]

    test.start.run()
    test.run()
    assert test.figures['mIoU'] == 0.8 and test.figures['aAcc'] == 80.0
    words, test_words = commands[1:]
    assert '--resume' in words and 'tools/test.py' in test_words and test.start.checkpoint in test_words
    size = next(word for word in words if word.startswith('train_dataloader.batch_size='))
    assert int(size.split('=')[1]) * demo.PROCESSES == 8
    assert ('torch.distributed.run' in words) == (demo.PROCESSES > 1)

    test.start.run()
    test.run()
    assert len(commands) == 3  # nothing was left to do
    assert f'load_from={test.start.checkpoint}' in after.start.command()


def test_ends_with_a_page_about_each_model(monkeypatch, tmp_path):
    tests = demo.plan(tmp_path, seed=0)
    for training in (training for test in tests for training in (test.start, test)):
        training.folder.mkdir(parents=True)
        torch.save({'weight': torch.ones(1)}, training.folder / 'iter_100.pth')
        training.result_file.write_text('{}')
    recorded = []

    def run(*words, **kwargs):
        recorded.append(words)
        if '--out' in words:
            Path(words[words.index('--out') + 1]).write_text('a page')

    monkeypatch.setattr(demo, 'run_script', run)
    monkeypatch.setattr(demo, 'draw_sheet', lambda folders, path: None)
    demo.run_all(tests, demo.Progress(100, tmp_path / 'log.txt'), tmp_path / 'sheet.jpg')
    assert [words[0] for words in recorded] == ['tools/data/make_mini.py', *['tools/analysis/report.py'] * 2]
    for test, words in zip(tests, recorded[1:]):
        args = report.parse_args([str(word) for word in words[1:]])
        assert (ROOT / args.network).exists() and args.checkpoint == test.start.checkpoint
        assert args.out == demo.report_of(test) and args.measure == 100 > args.count

    demo.run_all(tests, demo.Progress(100, tmp_path / 'log.txt'), tmp_path / 'sheet.jpg')
    assert len(recorded) == 4  # the pages are there; the scenes look for themselves


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    test, after = demo.plan(tmp_path, seed=0)
    folder = test.start.folder
    folder.mkdir(parents=True)
    assert '--resume' not in test.start.command()  # nothing to go on from
    for number in (100, 200):
        torch.save({'weight': torch.ones(1)}, folder / f'iter_{number}.pth')
    os.truncate(folder / 'iter_200.pth', 200)  # killed while it was written
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_200.pth'))
    assert test.start.checkpoint == str(folder / 'iter_100.pth')
    assert '--resume' in test.start.command() and f'load_from={folder / "iter_100.pth"}' in after.start.command()
    os.truncate(folder / 'iter_100.pth', 0)
    with pytest.raises(UserError, match='no checkpoint in .* is whole'):
        test.start.command()


def test_metrics_are_scaled_by_their_names(commands, tmp_path):
    test, _ = demo.plan(tmp_path, seed=0)
    for training in (test.start, test):
        training.folder.mkdir(parents=True)
    torch.save({'weight': torch.ones(1)}, test.start.folder / 'iter_100.pth')
    test.run()
    assert dict(test.shares) == {'mIoU': pytest.approx(0.008), 'pixel accuracy': pytest.approx(0.8)}
    assert driver.as_share('coco/bbox_mAP', 0.8) == 0.8


def test_per_cent_are_the_metrics_of_mmseg():
    metric = IoUMetric(iou_metrics=['mIoU', 'mDice', 'mFscore'])
    metric.dataset_meta = dict(classes=('a', 'b'))
    intersection, union, area = torch.tensor([2.0, 3.0]), torch.tensor([4.0, 5.0]), torch.tensor([3.0, 4.0])
    measured = metric.compute_metrics([(intersection, union, area, area)])
    assert set(measured) == driver.PER_CENT and measured['aAcc'] > 1


def test_interrupt_ends_with_a_line_that_says_how_to_go_on(tmp_path):
    script = (
        'from unittest import mock; from tools import demo, driver; '
        "wait = ('-c', 'import time; print(1, flush=True); time.sleep(60)'); "
        "mock.patch.object(demo, 'run_script', lambda *words, **kwargs: driver.run_script(*wait)).start(); "
        'demo.main()'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, '--work-dir', str(tmp_path)],
        cwd=ROOT,
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


def test_a_step_that_fails_ends_the_demo_with_its_status_and_its_last_lines(monkeypatch, tmp_path, capsys):
    failing = ('-c', 'import sys; print("first " * 9); print(*range(100), sep=chr(10)); print("why"); sys.exit(3)')
    monkeypatch.setattr(demo, 'run_script', lambda *words, **kwargs: driver.run_script(*failing, **kwargs))
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--work-dir', str(tmp_path)])
    with pytest.raises(SystemExit) as exit_info:
        demo.main()
    assert exit_info.value.code == 3
    told = capsys.readouterr().err
    assert 'why\n' in told and 'first' not in told and f'all of it in {tmp_path / "log.txt"}' in told


def test_the_line_tells_the_time_left_as_mmengine_does(tmp_path, monkeypatch, capsys):
    progress = demo.Progress(100, tmp_path / 'log.txt')
    lines = 'Iter(train) [ 50/300]  eta: 1 day, 0:00:00  loss: 1\nIter(train) [100/300]  eta: 0:01:00  loss: 1\n'
    clock = iter([1000.0, 1030.0, 1030.0])
    monkeypatch.setattr(demo.time, 'monotonic', lambda: next(clock))

    def step(log, watch, **env):
        watch('no such thing here')
        watch(lines)
        assert progress.bar.n == pytest.approx(60 * 30 / (30 + 60))

    progress.run('training', 60, step)
    assert progress.bar.n == progress.done == 60
    progress.bar.refresh()
    assert 'training' in capsys.readouterr().err


def test_watched_outputs_go_to_the_log_with_their_command(tmp_path, capsys):
    seen, log = [], tmp_path / 'log.txt'
    log.write_text('before\n')
    driver.run_script('-c', 'print(11 * 11)', log=log, watch=seen.append)
    assert ''.join(seen).split() == ['121']
    assert log.read_text().splitlines()[0] == 'before' and '121' in log.read_text()
    assert "$ python -c 'print(11 * 11)'" in log.read_text() and not capsys.readouterr().out
