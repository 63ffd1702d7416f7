"""The stock ways of training, on our backbones: what each promises is measured on the weights."""

import itertools
import os

from mmvisattn.engine.fsdp_strategy import CRASHES_ON_CPU
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, FCViT, FlexViT

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor, nn

from ..models.networks import BACKBONES, build
from ..tools.test_dist import free_port

RUNS = itertools.count()  # each has a log of its own
SEED = torch.Generator().manual_seed(0)
IMAGES = [torch.randn(3, 32, 48, generator=SEED) for _ in range(8)]


class Dense(BaseModel):
    """A backbone with a target that it can come near."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Tensor, mode: str = 'tensor'):
        out = self.backbone(inputs)[-1]
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else [out]


def make_runner(folder, backbone, length=4, batch_size=2, wrapper=None, **kwargs) -> Runner:
    return Runner(
        model=Dense(backbone),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=image) for image in IMAGES],
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            batch_size=batch_size,
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=False, max_iters=length),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)) | (wrapper or {}),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False), logger=None),
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name=f'modes-{next(RUNS)}',
        **kwargs,
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def train(*args, **kwargs) -> dict[str, Tensor]:
    runner = make_runner(*args, **kwargs)
    runner.train()
    return weights(runner.model)


@pytest.mark.parametrize('network', [DefocusRetNet, DefocusMamba], ids=lambda network: network.__name__)
def test_accumulated_gradients_are_those_of_one_batch(network, tmp_path):
    whole = train(tmp_path / 'whole', build(network), length=2, batch_size=4)
    parts = train(tmp_path / 'parts', build(network), 4, 2, wrapper=dict(accumulative_counts=2))
    start = weights(Dense(build(network)))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert any((start[name] - value).abs().max() > 1e-3 for name, value in whole.items())


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_clipping_bounds_the_step(network, tmp_path):
    start = weights(Dense(build(network)))
    end = train(tmp_path, build(network), length=1, wrapper=dict(clip_grad=dict(max_norm=0.01)))
    step = torch.stack([(end[name] - value).norm() for name, value in start.items()]).norm()
    torch.testing.assert_close(step, torch.tensor(0.1 * 0.01), rtol=1e-2, atol=0)


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_frozen_stages_stay(network, tmp_path):
    backbone = build(network, frozen_stages=1)
    frozen = {id(p) for stage in (0, 1) for part in backbone.stage_modules(stage)
              for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}  # fmt: skip
    names = {name for name, p in Dense(backbone).named_parameters() if id(p) in frozen}
    start = weights(Dense(backbone))
    buffers = {name: value.clone() for name, value in backbone.named_buffers() if 'patch_embed' in name}
    end = train(tmp_path, backbone)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert names and not names & changed and changed
    assert all(torch.equal(value, dict(backbone.named_buffers())[name]) for name, value in buffers.items())


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_checkpointing_of_activations_trains_to_the_same_weights(network, tmp_path):
    trained = []
    for with_cp in (False, True):
        backbone = build(network, with_cp=with_cp, drop_path_rate=0.3)
        runner = make_runner(tmp_path / str(with_cp), backbone, length=3, randomness=dict(seed=0))
        runner.train()
        trained.append(runner.model.state_dict())  # with the statistics of BatchNorm, which sees each batch once
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_average_of_weights_is_saved_and_resumed(tmp_path):
    hook = [dict(type='EMAHook', momentum=0.2)]
    build_net = lambda: build(FCViT)  # noqa: E731
    make_runner(tmp_path / 'a', build_net(), 4, custom_hooks=hook).train()
    make_runner(tmp_path / 'b', build_net(), 2, custom_hooks=hook).train()
    resumed = make_runner(tmp_path / 'b', build_net(), 4, custom_hooks=hook, resume=True)
    resumed.train()
    first, second = (torch.load(tmp_path / name / 'iter_4.pth', weights_only=False) for name in 'ab')
    assert first['ema_state_dict'].keys() == second['ema_state_dict'].keys()
    for kind in ('state_dict', 'ema_state_dict'):
        for name, value in first[kind].items():
            torch.testing.assert_close(second[kind][name], value, msg=f'{kind} {name}')
    # mmengine keeps the average as `state_dict`, that which is tested, and the last weights beside it.
    name = 'backbone.patch_embed.proj.weight'
    assert not torch.equal(first['state_dict'][name], first['ema_state_dict'][f'module.{name}'])


@HOOKS.register_module()
class NoteSettings(Hook):
    """Notes what the schedules have set, iteration by iteration."""

    priority = 'LOWEST'

    def __init__(self, notes: dict) -> None:
        self.notes = notes

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        backbone = runner.model.backbone
        self.notes[runner.iter] = [
            *(group['lr'] for group in runner.optim_wrapper.param_groups),
            *(block.drop_path.drop_prob for block in backbone.blocks),
            *(block.alpha.item() for block in backbone.blocks),
        ]


def test_schedules_are_right_after_resuming_from_any_iteration(tmp_path):
    length, drawn = 12, iter(range(10))

    def run(folder, until, resume=False) -> dict:
        notes = {}
        runner = make_runner(
            folder,
            build(FlexViT, depth=3, num_glance_layers=1, drop_path_rate=0.5),
            length,
            wrapper=dict(
                constructor='mmvisattn.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.7)
            ),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=4),
                dict(type='PolyLR', power=0.9, eta_min=0, by_epoch=False, begin=4, end=length),
            ],
            custom_hooks=[
                dict(type='mmvisattn.ScheduledDropPathHook', start=0.1, end=0.5, by_epoch=False),
                dict(type='mmvisattn.FlexRampHook', fraction=0.6),
                dict(type='NoteSettings', notes=notes),
            ],
            resume=resume,
        )
        if until < length:
            runner.register_hook(StopAfter(until))
        try:
            runner.train()
        except KeyboardInterrupt:
            pass
        return notes

    wanted = run(tmp_path / 'whole', length)
    assert len(wanted) == length and len({tuple(values) for values in wanted.values()}) == length
    for until in (1, 3, 4, 7, 11):
        folder = tmp_path / f'resumed{next(drawn)}'
        run(folder, until)
        resumed = run(folder, length, resume=True)
        assert list(resumed) == list(range(until, length))
        assert all(resumed[i] == pytest.approx(wanted[i]) for i in resumed), until


class StopAfter(Hook):
    """Ctrl-C after so many iterations, when the checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iterations:
            raise KeyboardInterrupt


# Several processes


def step_of_a_rank(rank: int, port: str, folder: str, names: list[str]) -> None:
    """Two steps of this rank's share of the batch, for each network; the weights go into a file."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=str(rank), WORLD_SIZE='2')
    dist.init_process_group('gloo', rank=rank, world_size=2)
    for name in names:
        model = two_steps(build(MODELS.get(f'mmvisattn.{name}')), IMAGES[rank::2], wrap=True)
        if rank == 0:
            torch.save(weights(model), f'{folder}/{name}.pth')
    # What a CPU can show of SyncBN is that the layers are found; its first step is refused.
    synced = convert_sync_batchnorm(build(FCViT)).train()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    with pytest.raises(ValueError, match='SyncBatchNorm expected input tensor to be on'):
        synced(torch.stack(IMAGES[:2]))
    dist.destroy_process_group()


def two_steps(backbone: nn.Module, images: list[Tensor], wrap: bool = False) -> nn.Module:
    model = Dense(backbone).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics are those of a process
        if hasattr(module, 'explore'):
            module.explore = 0.0  # drawn in each process
    run = MMDistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False) if wrap else model
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    for half in (images[: len(images) // 2], images[len(images) // 2 :]):
        loss = run(torch.stack(half), mode='loss')['loss']
        wrapper.update_params(loss)
    return model


def test_two_processes_are_one_with_the_same_batch(tmp_path):
    names = [network.__name__ for network in BACKBONES]
    mp.spawn(step_of_a_rank, (free_port(), str(tmp_path), names), nprocs=2)
    for network in BACKBONES:
        start = weights(Dense(build(network)))
        one = weights(two_steps(build(network), IMAGES))
        two = torch.load(tmp_path / f'{network.__name__}.pth')
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=f'{network.__name__}: {name}')
        assert any((one[name] - value).abs().max() > 1e-3 for name, value in start.items())


ADAMW = dict(type='AdamW', lr=1e-3, eps=1e-3)


def runner_in_parts(
    world_size: int, folder: str, checkpoint: str | None, strategy: dict, optim_wrapper: str
) -> FlexibleRunner:
    """Four steps in several processes with a checkpoint every two, from a checkpoint or the start."""
    return FlexibleRunner(
        model=Dense(build(DefocusMamba)),
        work_dir=folder,
        launcher='pytorch',
        strategy=strategy,
        train_dataloader=dict(
            dataset=[dict(inputs=image) for image in IMAGES],
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            batch_size=4 // world_size,
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=False, max_iters=4),
        optim_wrapper=dict(type=optim_wrapper, optimizer=dict(ADAMW)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False), logger=None),
        randomness=dict(seed=0),
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name=f'in-parts-{next(RUNS)}',
        load_from=checkpoint,
        resume=checkpoint is not None,
    )


def shard_and_train(rank: int, world_size: int, port: str, runs: list[tuple[str, str | None]]) -> None:
    """Four steps with each parameter cut into a part for each process: to a folder, from a checkpoint or the start."""
    torch.set_num_threads(1)
    ranks = dict(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, **ranks)
    dist.init_process_group('gloo', rank=rank, world_size=world_size)
    for folder, checkpoint in runs:
        # Left to itself, mmengine takes the GPU of the number of the process.
        strategy = dict(type='mmvisattn.FSDPStrategy', model_wrapper=dict(device_id=torch.device('cpu')))
        runner_in_parts(world_size, folder, checkpoint, strategy, 'OptimWrapper').train()
    dist.destroy_process_group()


def sharded(world_size: int, *runs: tuple[str, str | None]) -> None:
    mp.spawn(shard_and_train, (world_size, free_port(), runs), nprocs=world_size)


def test_sharded_training_is_saved_whole_and_resumed_by_any_number_of_processes(tmp_path):
    whole, half = tmp_path / 'whole', str(tmp_path / 'whole/iter_2.pth')
    if CRASHES_ON_CPU:
        with pytest.raises(mp.ProcessRaisedException, match='crashes when it saves weights that are sharded over CPUs'):
            sharded(2, (str(whole), None))
        return
    sharded(2, (str(whole), None), (str(tmp_path / 'two'), half))
    sharded(1, (str(tmp_path / 'one'), half))
    wanted = torch.load(whole / 'iter_4.pth', weights_only=False)
    for name, value in train(tmp_path / 'stock', build(DefocusMamba), 4, 4, dict(optimizer=ADAMW)).items():
        torch.testing.assert_close(wanted['state_dict'][name], value, rtol=1e-3, atol=1e-5, msg=name)

    moments = wanted['optimizer']['state']
    assert len(moments) > 20 and all(not torch.equal(m['exp_avg'], m['exp_avg_sq']) for m in moments.values())
    for folder in ('two', 'one'):
        resumed = torch.load(tmp_path / folder / 'iter_4.pth', weights_only=False)
        for name, value in wanted['state_dict'].items():
            torch.testing.assert_close(resumed['state_dict'][name], value, rtol=1e-4, atol=1e-7, msg=name)
        for name, kinds in moments.items():
            for kind, value in kinds.items():
                other = resumed['optimizer']['state'][name][kind]
                torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-7, msg=f'{name} {kind}')

    # A plain runner, without a strategy, goes on from the same file.
    plain = make_runner(
        tmp_path / 'plain', build(DefocusMamba), 4, 4, dict(optimizer=ADAMW), load_from=half, resume=True
    )
    plain.train()
    for name, value in weights(plain.model).items():
        torch.testing.assert_close(value, wanted['state_dict'][name], rtol=1e-3, atol=1e-5, msg=name)
