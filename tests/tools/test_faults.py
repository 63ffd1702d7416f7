"""What can go wrong while a training runs: one line that says what and how to put it right, and nothing lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmvisattn import cli, runs
from mmvisattn.data_checks import CheckFiles, check_picture, report_annotations
from mmvisattn.errors import UserError

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from .utils import ROOT, TOOLS, read_log, run_command, run_python, run_tool

ADE = 'ade/ADEChallengeData2016'
MINUTES_OF_KILLS = 60  # at most; some where nothing else runs


@pytest.fixture
def told(capsys):
    """Run a tool that must refuse in one line, and return it."""

    def run(*args: object) -> str:
        with pytest.raises(SystemExit) as exit_info:
            run_tool(*args)
        assert exit_info.value.code == 2
        stderr = capsys.readouterr().err
        line = stderr[stderr.index('error: ') :].strip()
        assert '\n' not in line, line
        return line

    return run


# Killed and resumed


def kill_and_resume(config: Path, kills: int, *options: str) -> None:
    tool = TOOLS / 'analysis/kill_and_resume.py'
    done = run_python(tool, config, '--kills', kills, '--cfg-options', *options, timeout=MINUTES_OF_KILLS * 60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf'{kills} kills of (\d+) trainings: \1 of them ended with the same weights', done.stdout)
    print(done.stdout.splitlines()[-1])  # `pytest -s` tells the figure


def test_killed_trainings_end_with_the_same_weights(seg_config):
    kill_and_resume(seg_config, 3, 'train_dataloader.num_workers=1', 'train_dataloader.persistent_workers=True')


@pytest.mark.slow
@pytest.mark.timeout(MINUTES_OF_KILLS * 60)
@pytest.mark.parametrize(
    ('name', 'length'),
    [('seg', ['train_cfg.max_iters=12']), ('det', ['train_cfg.max_epochs=4', 'train_cfg.val_interval=2'])],
)
def test_killed_25_times(name, length, request):
    workers = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
    kill_and_resume(request.getfixturevalue(f'{name}_config'), 25, *workers, *length)


def test_damaged_checkpoint_is_named_and_the_one_before_taken(seg, tmp_path):
    work_dir = tmp_path / 'work'
    shutil.copytree(seg.work_dir, work_dir)
    newest = work_dir / 'iter_6.pth'
    newest.write_bytes(newest.read_bytes()[:-100])
    run_tool('train', seg.config, '--work-dir', work_dir, '--resume')
    assert [entry['step'] for entry in read_log(work_dir) if 'loss' in entry] == [5, 6]
    assert runs.latest_checkpoint(work_dir) == str(newest)  # anew, and whole


def test_latest_checkpoint(tmp_path):
    assert runs.latest_checkpoint(tmp_path) is None
    for number in (9, 10, 11):
        torch.save({'weight': torch.rand(9)}, tmp_path / f'iter_{number}.pth')
        os.utime(tmp_path / f'iter_{number}.pth', (1000, 1000))  # as after a copy
    assert runs.latest_checkpoint(tmp_path).endswith('iter_11.pth')
    flipped = bytearray((tmp_path / 'iter_11.pth').read_bytes())
    flipped[flipped.index(torch.load(tmp_path / 'iter_11.pth')['weight'].numpy().tobytes())] ^= 1
    (tmp_path / 'iter_11.pth').write_bytes(flipped)
    (tmp_path / 'last_checkpoint').write_text('')  # killed while it was written
    assert runs.latest_checkpoint(tmp_path).endswith('iter_10.pth')
    for number in (9, 10):
        (tmp_path / f'iter_{number}.pth').write_bytes(b'')
    with pytest.raises(
        UserError,
        match=r'no checkpoint in .* is whole: (?=.*iter_10\.pth: it is empty)(?=.*iter_11\.pth: it is damaged)',
    ):
        runs.latest_checkpoint(tmp_path)


# The work directory


def test_two_trainings_in_one_work_directory(seg_config, tmp_path, told):
    work_dir = tmp_path / 'work'
    with runs.sole_run(str(work_dir)):
        assert 'another training writes to' in told('train', seg_config, '--work-dir', work_dir)
    with runs.sole_run(str(work_dir)):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:  # as a worker of the data loader that outlives its training
            os.write(writer, b'1')
            signal.pause()
        os.read(reader, 1)
    try:
        with runs.sole_run(str(work_dir)):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_work_directory_that_cannot_be_written_to(seg_config, tmp_path, told):
    (tmp_path / 'file').write_text('')
    line = told('train', seg_config, '--work-dir', tmp_path / 'file/work')
    assert 'cannot be written to: Not a directory; set --work-dir' in line


def test_disk_that_is_full(seg_config, tmp_path):
    # No file larger than 64 KiB, which logs are not and checkpoints are.
    script = tmp_path / 'limited.py'
    script.write_text(
        'import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n'
        'from tools import train\ntrain.main(sys.argv[1:])\n'
    )
    done = run_python(script, seg_config, '--work-dir', tmp_path / 'work')
    assert done.returncode == 2
    assert re.search(r'^error: checkpoint .*iter_2\.pth. of .* cannot be written: .*make room', done.stderr, re.M)
    assert 'Traceback' not in done.stderr
    assert not list((tmp_path / 'work').glob('*.pth*'))


# Processes


@HOOKS.register_module()
class KillWorkerHook(Hook):
    """Kills a worker of the data loader."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        os.kill(runner.train_loop.dataloader_iterator._iterator._workers[0].pid, signal.SIGKILL)


@pytest.mark.timeout(120)
def test_worker_that_is_killed_ends_the_run(seg_config, tmp_path, told):
    config = seg_config.with_name('kill-worker.py')
    config.write_text(f"_base_ = './{seg_config.name}'\ncustom_hooks = [dict(type='KillWorkerHook')]\n")
    options = ['train_dataloader.num_workers=1', 'train_cfg.max_iters=1000', 'train_dataloader.persistent_workers=True']
    line = told('train', config, '--work-dir', tmp_path, '--cfg-options', *options)
    assert 'a worker of the data loader was killed' in line and '`train_dataloader.num_workers`' in line


@pytest.mark.skipif(sys.platform != 'linux', reason='another system does not tell a process of the end of its parent')
def test_workers_end_with_a_training_that_is_killed(tmp_path):
    script = (
        'import multiprocessing, sys, time\nfrom mmvisattn import runs\n'
        'with runs.sole_run(sys.argv[1]):\n'
        "    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        '    worker.start()\n    print(worker.pid, flush=True)\n    time.sleep(600)\n'
    )
    command = [sys.executable, '-c', script, str(tmp_path / 'work')]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    status = Path(f'/proc/{int(training.stdout.readline())}/stat')
    assert status.exists()
    training.kill()
    training.wait()
    for _ in range(100):
        if not status.exists() or ') Z ' in status.read_text():  # gone, or about to be taken away
            return
        time.sleep(0.1)
    pytest.fail('the worker is still there')


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rank_that_is_killed_ends_the_run(seg_config, tmp_path):
    from .test_dist import free_port

    config = seg_config.with_name('kill-rank.py')
    config.write_text(
        f"_base_ = './{seg_config.name}'\n"
        'import os as _os\n'
        "custom_hooks = [dict(type='KillRankHook')]\n"
        "custom_imports = dict(imports=['kill_rank', 'mmvisattn'])\n"
    )
    (tmp_path / 'kill_rank.py').write_text(
        'import os\nfrom mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n\n'
        '@HOOKS.register_module()\nclass KillRankHook(Hook):\n'
        '    def after_train_iter(self, runner, *args, **kwargs):\n'
        '        if runner.rank == 1 and runner.iter == 1:\n            os.kill(os.getpid(), 9)\n'
    )
    done = run_command(
        *('bash', TOOLS / 'dist_train.sh', config, 2, '--work-dir', tmp_path / 'work'),
        PORT=free_port(),
        PYTHONPATH=f'{ROOT}{os.pathsep}{tmp_path}',
    )
    assert done.returncode != 0 and 'Signal 9 (SIGKILL)' in done.stderr


# Settings


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU has float16')
def test_mixed_precision_on_the_cpu(seg_config, tmp_path):
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=9']
    losses = []
    for flags in ([], ['--amp']):
        folder = tmp_path / f'work{len(flags)}'
        run_tool('train', seg_config, '--work-dir', folder, *flags, '--cfg-options', 'randomness.seed=0', *options)
        losses.append([entry['loss'] for entry in read_log(folder) if 'loss' in entry])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_without_workers_one_setting_is_enough(shipped_configs, tmp_path):
    config = shipped_configs['seg'].with_name('workers.py')
    config.write_text(f"_base_ = './{shipped_configs['seg'].name}'\n")
    options = ['train_dataloader.persistent_workers=True', 'train_dataloader.prefetch_factor=4']
    run_tool('train', config, '--work-dir', tmp_path, '--cfg-options', 'train_dataloader.num_workers=0', *options)
    assert (tmp_path / 'iter_1.pth').is_file()


def test_backend_that_is_not_installed(seg_config, tmp_path, told, monkeypatch):
    monkeypatch.setitem(cli.BACKEND_PACKAGES, 'WandbVisBackend', ('no_such_package',))
    config = seg_config.with_name('backend.py')
    config.write_text(
        f"_base_ = './{seg_config.name}'\nvisualizer = dict(vis_backends=[dict(type='WandbVisBackend')])\n"
    )
    line = told('train', config, '--work-dir', tmp_path)
    assert 'WandbVisBackend needs no_such_package' in line and 'pip install no_such_package' in line


@pytest.mark.parametrize('name, unit, other', [('seg', 'max_epochs', 'max_iters'), ('det', 'max_iters', 'max_epochs')])
def test_length_in_the_wrong_unit(name, unit, other, request, tmp_path, told):
    config = request.getfixturevalue(f'{name}_config')
    line = told('train', config, '--work-dir', tmp_path, '--cfg-options', f'train_cfg.{unit}=3')
    assert f'`train_cfg.{unit}`' in line and f'set `train_cfg.{other}`' in line


# Data


SPOILT = {
    'missing': (Path.unlink, 'does not exist, and the data name it'),
    'empty': (lambda path: path.write_bytes(b''), 'is empty (0 bytes)'),
    'cut off': (lambda path: path.write_bytes(path.read_bytes()[:-50]), 'is cut off'),
    'other': (lambda path: path.write_text('<html>404</html>'), 'is no picture'),
}


@pytest.fixture
def data(mini_data, tmp_path) -> Path:
    return Path(shutil.copytree(mini_data, tmp_path / 'mini'))


@pytest.mark.parametrize('what', SPOILT)
@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_damaged_picture(what, suffix, mini_data, tmp_path):
    spoil, message = SPOILT[what]
    path = Path(shutil.copy(next(mini_data.rglob(f'*.{suffix}')), tmp_path))
    spoil(path)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        CheckFiles()(dict(img_path=str(path)))
    assert str(path) in str(error.value)


def test_damaged_picture_in_a_worker_ends_training(seg_config, data, tmp_path, told):
    for path in (data / ADE / 'images/training').iterdir():
        SPOILT['cut off'][0](path)
    options = [f'train_dataloader.dataset.data_root={data / ADE}', 'train_dataloader.num_workers=1']
    line = told('train', seg_config, '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    assert 'ADE_train_' in line and 'is cut off' in line
    assert not (tmp_path / 'work').exists()


def test_label_map_of_another_picture(tmp_path):
    paths = dict(img_path=str(tmp_path / 'a.jpg'), seg_map_path=str(tmp_path / 'a.png'))
    Image.new('RGB', (128, 96)).save(paths['img_path'])
    Image.new('L', (96, 128)).save(paths['seg_map_path'])
    assert CheckFiles()(paths) is paths  # turned, as EXIF data may say
    Image.new('L', (64, 64)).save(paths['seg_map_path'])
    with pytest.raises(UserError, match='is of 64×64 pixels and its picture of 128×96'):
        CheckFiles()(paths)


def test_whole_pictures_pass(mini_data, tmp_path):
    pictures = [path for path in mini_data.rglob('*.*g')]
    assert {check_picture(path) for path in pictures} == {(128, 96)}
    Image.new('RGB', (3, 5)).save(tmp_path / 'picture.webp')
    assert check_picture(tmp_path / 'picture.webp') == (3, 5)


def annotations(data: Path, change) -> Path:
    path = data / 'coco/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_annotations_that_are_left_out_are_counted(data, capsys):
    def change(content):
        width = content['images'][0]['width']
        box = dict(content['annotations'][0], iscrowd=0, area=100, bbox=[1, 1, 10, 10], segmentation=[])
        odd = [
            dict(category_id=999),
            dict(bbox=[width, 0, 20, 20]),
            dict(bbox=[-30, 0, 20, 20]),
            dict(bbox=[5, 5, 0.5, 20]),
            dict(segmentation=[[1, 1, 2, 2]]),
            dict(image_id=-1),
        ]
        content['annotations'] += [dict(box, id=10**6 + i, **one) for i, one in enumerate(odd)]

    before = report_annotations(data / 'coco/annotations/instances_train2017.json', data / 'coco/train2017')
    assert before is None
    path = annotations(data, change)
    line = report_annotations(path, data / 'coco/train2017')
    assert ': 6 of ' in line and '2 with a box that is empty or outside of its picture' in line
    for part in ('1 of a category that the file does not list (id 999)', '1 smaller than a pixel', 'three points'):
        assert part in line
    dataset = dict(type='CocoDataset', data_root=f'{data}/coco', ann_file=path.relative_to(data / 'coco').as_posix())
    loader = dict(dataset=dict(dataset, data_prefix=dict(img='train2017/')))
    cli.check_data(Config(dict(train_dataloader=loader)), 'train_dataloader')
    assert f'`train_dataloader.dataset`: {line}' in capsys.readouterr().out


def test_annotations_that_name_missing_pictures(data):
    next((data / 'coco/train2017').iterdir()).unlink()
    with pytest.raises(UserError, match='names 1 pictures that are not in .* take them out of the annotations'):
        report_annotations(data / 'coco/annotations/instances_train2017.json', data / 'coco/train2017')


@pytest.mark.parametrize('content', ['', '[]', '{"images": [{}], "categories": []}'])
def test_annotations_of_another_form(content, tmp_path):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(UserError, match='a.json. are not of the form of COCO'):
        report_annotations(tmp_path / 'a.json', tmp_path)
