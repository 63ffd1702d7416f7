"""Training by way of DeepSpeed; `make test-deepspeed` installs the version that mmengine works with."""

import os
from pathlib import Path

from mmvisattn.models.backbones import DefocusMamba

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..models.networks import build
from ..tools.test_dist import free_port
from .test_training_modes import ADAMW, runner_in_parts, train


def train_in_parts(rank: int, world_size: int, port: str, folder: str, checkpoint: str | None) -> None:
    """Four steps with the optimizer's state cut into a part for each process, from a checkpoint or the start."""
    torch.set_num_threads(1)
    ranks = dict(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(DS_ACCELERATOR='cpu', MASTER_ADDR='127.0.0.1', MASTER_PORT=port, **ranks)
    dist.init_process_group('gloo', rank=rank, world_size=world_size)
    strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=1))
    runner = runner_in_parts(world_size, folder, checkpoint, strategy, 'DeepSpeedOptimWrapper')
    runner.train()
    if rank == 0:
        torch.save(runner.model.model.module.state_dict(), f'{folder}/weights.pth')
    dist.destroy_process_group()


def in_parts(world_size: int, folder: Path, checkpoint: Path | None = None) -> None:
    args = (world_size, free_port(), str(folder), checkpoint and str(checkpoint))
    mp.spawn(train_in_parts, args, nprocs=world_size)


@pytest.mark.slow
def test_deepspeed_trains_to_the_same_weights_and_is_resumed(tmp_path):
    in_parts(2, tmp_path / 'whole')
    half = tmp_path / 'whole/iter_2.pth'
    in_parts(2, tmp_path / 'resumed', half)
    stock = train(tmp_path / 'stock', build(DefocusMamba), 4, 4, dict(optimizer=ADAMW))
    for folder in ('whole', 'resumed'):
        trained = torch.load(tmp_path / folder / 'weights.pth')
        for name, value in stock.items():
            torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-5, msg=f'{folder}: {name}')
    # Its checkpoints are in parts, for the number of processes that wrote them.
    with pytest.raises(mp.ProcessRaisedException, match='world size'):
        in_parts(1, tmp_path / 'one', half)
