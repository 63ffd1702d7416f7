"""Every shipped config loads, builds, and is found where README and metafiles say it is."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
METAFILES = [ROOT / path for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
RANDOM_START = 'a path of weights, or None for a random start'


def load(path: Path) -> Config:
    cfg = Config.fromfile(ROOT / path)
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.fixture(autouse=True)
def meta_device():
    """Parameters without memory: the large models build in seconds."""
    with torch.device('meta'):
        yield


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    cfg = load(path)
    model = MODELS.build(cfg.model)
    assert cfg.model.backbone.type.startswith('mmvisattn.')
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0
    assert cfg.custom_imports['imports'] == ['mmvisattn']
    assert any(hook.type == 'mmvisattn.CheckpointReportHook' for hook in cfg.custom_hooks)
    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')  # mixed precision asks for a GPU
    wrapper.pop('loss_scale', None)
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    held = {parameter for group in optimizer.param_groups for parameter in group['params']}
    assert held >= {parameter for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_schedule_ends_with_the_training(path):
    cfg = load(path)
    loop = cfg.train_cfg
    by_epoch = loop.type == 'EpochBasedTrainLoop'
    last = loop.max_epochs if by_epoch else loop.max_iters
    assert max(step.end for step in cfg.param_scheduler if step.get('by_epoch', True) == by_epoch) == last


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.parent.name != 'mini'], ids=lambda path: path.stem)
def test_names_say_what_is_inside(path):
    cfg = load(path)
    name = path.stem
    arch = cfg.model.backbone.arch
    assert arch in name
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    assert cfg.default_scope == ('mmseg' if 'ade20k' in name else 'mmdet')
    if 'ade20k' in name:
        batch = cfg.train_dataloader.batch_size
        assert f'{cfg.auto_scale_lr.base_batch_size // batch}xb{batch}-{cfg.train_cfg.max_iters // 1000}k' in name
    if '_amp-' in name:
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


def test_metafiles_list_every_config_once():
    models = [model for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]
    named = [Path(model['Config']) for model in models]
    assert sorted(named) == [path for path in CONFIGS if path.parent.name != 'mini']
    assert all(model['Name'] == path.stem for model, path in zip(models, named))
    # What nobody can download must not look as if one could.
    assert not any('Weights' in model for model in models)
    for model in models:
        for result in model.get('Results', []):
            assert result['Source'].startswith('published')


@pytest.mark.parametrize('folder', sorted({path.parent for path in CONFIGS}), ids=str)
def test_readme_names_every_config(folder):
    text = (ROOT / folder / 'README.md').read_text()
    assert [path.name for path in CONFIGS if path.parent == folder and f'({path.name})' not in text] == []
