"""Several processes, by the shell scripts and without them; where there is no GPU they run on the CPU over gloo."""

import os
import socket
from pathlib import Path

from mmvisattn.engine.fsdp_strategy import CRASHES_ON_CPU

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from tests import processes

from .utils import ROOT, TOOLS, read_log, read_metrics, run_command, run_tool

FAKE_SRUN = """#!/usr/bin/env bash
# Write down the command, and run one task of the job here where there is to be but one.
echo "$@" > "$SRUN_RECORD"
[[ " $* " == *" --ntasks=1 "* ]] || exit 0
while [[ $1 == -* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_NODELIST=localhost exec "$@"
"""


def free_port() -> str:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


@pytest.fixture
def srun(tmp_path):
    """Environment with a ``srun`` that writes down its arguments and runs a job of one task."""
    script = tmp_path / 'bin/srun'
    script.parent.mkdir()
    script.write_text(FAKE_SRUN)
    script.chmod(0o755)
    return dict(
        first_on_path=str(script.parent),
        SRUN_RECORD=str(tmp_path / 'srun.txt'),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=free_port(),
    )


def train(config: Path, number: int, *args: object) -> tuple[int, str]:
    """Status and errors of a training in so many processes, begun in ones that have imported the toolboxes.

    They are given what the launcher of ``dist_train.sh`` gives to its own.
    """
    job = dict(PYTHONPATH=str(ROOT), WORLD_SIZE=str(number), MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    ranks = [{**os.environ, **job, 'RANK': str(i), 'LOCAL_RANK': str(i)} for i in range(number)]
    words = [str(word) for word in (TOOLS / 'train.py', config, '--launcher', 'pytorch', *args)]
    done = processes.run_together(words, ROOT, ranks, timeout=800)
    return max(abs(rank.returncode) for rank in done), ''.join(rank.stderr for rank in done)


def log_text(work_dir: Path) -> str:
    return ''.join(log.read_text() for log in work_dir.glob('*/*.log'))


@pytest.mark.parametrize('name', [pytest.param('det', marks=pytest.mark.slow), 'seg'])
def test_dist_train_two_processes(name, shipped_configs, tmp_path):
    done = run_command(
        *('bash', TOOLS / 'dist_train.sh', shipped_configs[name], 2, '--work-dir', tmp_path),
        *('--cfg-options', 'find_unused_parameters=False', 'model_wrapper_cfg=None'),
        PORT=free_port(),
    )
    assert done.returncode == 0, done.stderr
    (step, *_) = read_log(tmp_path)
    assert np.isfinite(step['loss'])
    text = log_text(tmp_path)
    assert 'Distributed training: True' in text and 'GPU number: 2' in text
    if not torch.cuda.is_available():
        assert text.count('over gloo') == 1
    assert len(list(tmp_path.glob('*_1.pth'))) == 1


SHARDED = ('runner_type=FlexibleRunner', 'strategy.type=mmvisattn.FSDPStrategy')


def test_sharded_training_is_resumed_in_another_number_of_processes(seg_config, tmp_path):
    work_dir = tmp_path / 'sharded'
    config = tmp_path / 'sharded.py'
    config.write_text(f"_base_ = '{seg_config}'\noptim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW'))\n")
    for number, length in ((2, 2), (2, 4), (1, 6)):
        options = [f'train_cfg.max_iters={length}', 'train_cfg.val_interval=6', *SHARDED]
        options += [f'train_dataloader.batch_size={2 // number}']
        status, told = train(config, number, '--work-dir', work_dir, '--resume', '--cfg-options', *options)
        if CRASHES_ON_CPU:
            assert status and 'crashes when it saves weights that are sharded over CPUs; update torch' in told
            return
        assert status == 0, told
        assert [line['step'] for line in read_log(work_dir) if 'loss' in line] == [length - 1, length]
    assert 'resumed with another number of processes: 2 then, 1 now' in log_text(work_dir)
    checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=False)
    saved = checkpoint['state_dict']
    assert set(checkpoint['optimizer']['state']) < set(saved)  # by name, as it is put together from parts
    init_default_scope('mmseg')
    whole = MODELS.build(Config.fromfile(config).model).state_dict()
    assert {name: value.shape for name, value in saved.items()} == {name: x.shape for name, x in whole.items()}
    run_tool('train', config, '--work-dir', tmp_path / 'one', '--load-from', work_dir / 'iter_4.pth')
    assert f'{len(whole)} keys loaded, 0 missing' in log_text(tmp_path / 'one')


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (['strategy.type=FSDPStrategy'], 'set `strategy.type=mmvisattn.FSDPStrategy`'),
        (['strategy.type=mmvisattn.FSDPStrategy', 'strategy.state_dict_cfg=local'], "is 'local'; leave it out"),
        (['strategy.type=mmvisattn.FSDPStrategy', 'model.decode_head.num_classes=7'], 'tells 7 classes apart'),
    ],
)
def test_sharded_training_is_refused(options, told, seg_config, tmp_path):
    words = ['--work-dir', tmp_path, '--resume', '--cfg-options', 'runner_type=FlexibleRunner', *options]
    status, errors = train(seg_config, 1, *words)
    if CRASHES_ON_CPU and options[0] == 'strategy.type=mmvisattn.FSDPStrategy' and 'local' not in options[1]:
        told = 'crashes when it saves'
    assert status and told in errors and not list(tmp_path.glob('*.pth'))


def test_dist_test_measures_what_one_process_does(seg, tmp_path):
    done = run_command(
        *('bash', TOOLS / 'dist_test.sh', seg.config, seg.checkpoint, 2, '--work-dir', tmp_path / 'two'),
        PORT=free_port(),
    )
    assert done.returncode == 0, done.stderr
    # What one process measured at the end of its training.
    one, two = read_log(seg.work_dir)[-1], read_metrics(tmp_path / 'two')
    assert all(one[key] == two[key] for key in ('mIoU', 'aAcc', 'mAcc'))


@pytest.mark.parametrize(('first', 'then'), [(2, 1), (1, 2)])
def test_resumed_in_another_number_of_processes(first, then, seg_config, tmp_path):
    config = tmp_path / 'resumed.py'
    config.write_text(f"_base_ = '{seg_config}'\n")
    for number, length in ((first, 2), (then, 4)):
        # The same number of images in a step, all processes together.
        options = [f'train_cfg.max_iters={length}', f'train_dataloader.batch_size={2 // number}']
        words = ['--work-dir', tmp_path / 'work', '--resume', '--cfg-options', 'train_cfg.val_interval=4', *options]
        if number == 1:
            run_tool('train', config, *words)
            continue
        status, errors = train(config, number, *words)
        assert status == 0, errors
    steps = [line for line in read_log(tmp_path / 'work') if 'loss' in line]
    assert [line['step'] for line in steps] == [3, 4] and all(np.isfinite(line['loss']) for line in steps)
    told = log_text(tmp_path / 'work')
    assert f'resumed with another number of processes: {first} then, {then} now' in told
    assert f'resumed with another batch size: {2 // first} then, {2 // then} now' in told


def test_slurm_train(shipped_configs, srun, tmp_path):
    config, work_dir = shipped_configs['det'], tmp_path / 'work dir'
    done = run_command(
        *('bash', TOOLS / 'slurm_train.sh', 'part', 'job', config, work_dir, '--cfg-options', 'randomness.seed=1'),
        **{**srun, 'GPUS': '1', 'CPUS_PER_TASK': '3', 'SRUN_ARGS': '--quotatype=spot --async'},
    )
    assert done.returncode == 0, done.stderr
    recorded = (tmp_path / 'srun.txt').read_text().split(' python ')
    assert recorded[0].split() == [
        *('--partition=part', '--job-name=job', '--gres=gpu:1', '--ntasks=1', '--ntasks-per-node=1'),
        *('--cpus-per-task=3', '--kill-on-bad-exit=1', '--quotatype=spot', '--async'),
    ]
    assert np.isfinite(read_log(work_dir)[0]['loss'])
    assert 'Distributed training: True' in log_text(work_dir)


def test_slurm_test(srun, tmp_path):
    done = run_command(
        *('bash', TOOLS / 'slurm_test.sh', 'part', 'job', 'config.py', 'weights.pth', '--out', 'a b.pkl'),
        **{**srun, 'GPUS': '16'},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'srun.txt').read_text().strip() == (
        '--partition=part --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=5 '
        f'--kill-on-bad-exit=1 python -u {TOOLS}/test.py config.py weights.pth --launcher slurm --out a b.pkl'
    )


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_scripts_say_how_to_use_them(script):
    done = run_command('bash', TOOLS / script)
    assert done.returncode != 0
    assert f'usage: {TOOLS / script}' in done.stderr and 'CONFIG' in done.stderr
