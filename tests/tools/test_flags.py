"""The flags that the READMEs name, all at once, on every shipped config up to a built runner."""

from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from .test_dist import free_port
from .utils import ROOT, load_tool

CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / 'configs').glob('[!_]*/*.py'))


@pytest.fixture
def one_process(monkeypatch):
    """What a launcher tells the one process of a job."""
    for name, value in dict(
        RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port()
    ).items():
        monkeypatch.setenv(name, str(value))
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def built(monkeypatch, tmp_path) -> list[Runner]:
    """Have the tool build all but the data, without memory for the parameters; the runners that it built."""
    runners = []
    tool = load_tool('train')
    monkeypatch.setattr(tool, 'get_device', lambda: 'cuda')  # mixed precision is refused without a GPU
    monkeypatch.setattr(tool.cli, 'check_data', lambda *_: None)
    build_model = Runner.build_model

    def build_on_meta(runner: Runner, model: dict) -> torch.nn.Module:
        with torch.device('meta'):
            return build_model(runner, model)

    monkeypatch.setattr(Runner, 'build_model', build_on_meta)
    monkeypatch.setattr(Runner, 'wrap_model', lambda runner, wrapper, model: model)
    monkeypatch.setattr(Runner, 'train', lambda runner: runners.append(runner))

    def build(*flags: str) -> Runner:
        tool.main([*map(str, flags), '--work-dir', str(tmp_path)])
        return runners.pop()

    return build


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_flags(path: Path, one_process, built):
    flags = ['--amp', '--auto-scale-lr', '--resume', '--launcher', 'pytorch']
    runner = built(ROOT / path, *flags, '--cfg-options', 'model.backbone.with_cp=True')
    cfg = runner.cfg
    assert runner.distributed and torch.distributed.get_backend() == 'gloo'
    assert cfg.resume and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert runner.model.backbone.with_cp is True
    # The scaler of mixed precision asks for a GPU.
    plain = {key: value for key, value in cfg.optim_wrapper.items() if key != 'loss_scale'}
    wrapper = runner.build_optim_wrapper(ConfigDict(plain, type='OptimWrapper'))
    before = [group['lr'] for group in wrapper.optimizer.param_groups]
    runner.scale_lr(wrapper, cfg.auto_scale_lr)
    ratio = cfg.train_dataloader.batch_size / cfg.auto_scale_lr.base_batch_size
    after = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert after == pytest.approx([rate * ratio for rate in before])
