"""Every flag that the READMEs name, on every shipped config, up to a runner that could start."""

from mmvisattn import cli, runs

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
import torch.distributed as dist
from mmengine.runner import Runner

from ..test_configs import CONFIGS
from .test_dist import free_port
from .utils import ROOT, load_tool, run_tool

FLAGS = [
    *('--amp', '--auto-scale-lr', '--resume', '--launcher', 'pytorch'),
    *('--cfg-options', 'model.backbone.with_cp=True', 'model.backbone.init_cfg=None'),
]


@pytest.fixture(scope='module')
def process_group():
    """Ends what the first runner has started."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def train(monkeypatch, process_group):
    """``tools/train.py`` without data, with parameters that take no memory, and up to the training itself."""
    tool, runners, build_model = load_tool('train'), [], Runner.build_model

    def build_without_memory(runner, model):
        with torch.device('meta'):
            return build_model(runner, model)

    monkeypatch.setattr(Runner, 'build_model', build_without_memory)
    monkeypatch.setattr(Runner, 'wrap_model', lambda runner, wrapper_cfg, model: model)
    monkeypatch.setattr(Runner, '_log_env', lambda runner, env_cfg: None)
    monkeypatch.setattr(Runner, 'train', lambda runner: runners.append(runner))
    monkeypatch.setattr(cli, 'check_data', lambda *args: None)
    monkeypatch.setattr(tool, 'check_runner', lambda *args: None)
    # One process over gloo, which is told that there is a GPU for mixed precision.
    monkeypatch.setattr(runs, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(tool, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    group = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    for name, value in group.items():
        monkeypatch.setenv(name, str(value))

    def run(*args: object) -> Runner:
        run_tool('train', *args)
        return runners.pop()

    return run


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_flags_of_train(path, train, tmp_path):
    runner = train(ROOT / path, '--work-dir', tmp_path, *FLAGS)
    assert runner.distributed
    assert runner.model.backbone.with_cp
    assert runner.cfg.model.backbone.init_cfg is None

    runner.load_or_resume()
    assert not runner._has_loaded  # there is no checkpoint to resume from

    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert isinstance(wrapper, amp.AmpOptimWrapper)
    groups = wrapper.optimizer.param_groups
    rates = [group['lr'] for group in groups]
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    factor = runner.cfg.train_dataloader.batch_size / runner.cfg.auto_scale_lr.base_batch_size
    assert [group['lr'] for group in groups] == pytest.approx([factor * rate for rate in rates])
