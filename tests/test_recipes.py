"""Recipes of published models against the authors' own files, whose facts stand in ``tests/data/recipes``."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

ROOT = Path(__file__).parent.parent
RECIPES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / 'tests/data/recipes').glob('*.yml'))]
CASES = [
    pytest.param(name, {**recipe, **model}, recipe['config'], id=Path(name).stem)
    for recipe in RECIPES
    for name, model in recipe['models'].items()
]
BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@pytest.fixture(scope='module')
def built():
    """Each config read and built once, its parameters without memory."""
    found = {}

    def build(name: str) -> tuple[Config, nn.Module]:
        if name not in found:
            cfg = Config.fromfile(ROOT / name)
            init_default_scope(cfg.default_scope)
            with torch.device('meta'):
                found[name] = cfg, MODELS.build(cfg.model)
        return found[name]

    return build


def differences(given: object, facts: object, path: str = '') -> list[str]:
    """Where a config is not what the facts say; keys that they do not name are free."""
    if isinstance(facts, dict):
        if not isinstance(given, dict):
            return [f'{path}: {given!r}, not a dict']
        return [line for key, fact in facts.items() for line in differences(given.get(key), fact, f'{path}.{key}')]
    if isinstance(facts, list):
        if not isinstance(given, list | tuple) or len(given) != len(facts):
            return [f'{path}: {given!r}, not {facts!r}']
        return [line for i, fact in enumerate(facts) for line in differences(given[i], fact, f'{path}.{i}')]
    return [] if given == facts else [f'{path}: {given!r}, not {facts!r}']


@pytest.mark.parametrize(('name', 'recipe', 'common'), CASES)
def test_config(built, name, recipe, common):
    cfg, _ = built(name)
    assert differences(cfg.to_dict(), common) + differences(cfg.to_dict(), recipe['config']) == []
    assert cfg.auto_scale_lr.base_batch_size == recipe['batch_size']


@pytest.mark.parametrize(('name', 'recipe', 'common'), CASES)
def test_learning_rate_and_decay_of_every_parameter(built, name, recipe, common):
    cfg, model = built(name)
    wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('type', 'loss_scale')}
    optimizer = build_optim_wrapper(model, dict(wrapper, type='OptimWrapper')).optimizer
    assert type(optimizer).__name__ == recipe['optimizer']['type']
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[parameter]
            pattern = next(row for row in recipe['optimizer']['groups'] if re.search(row[0], name))
            assert (group['lr'], group['weight_decay']) == pytest.approx(tuple(pattern[1:])), name
            seen.add(name)
    assert seen == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(('name', 'recipe', 'common'), CASES)
def test_schedule(built, name, recipe, common):
    cfg, _ = built(name)
    for epoch, iteration, factor in recipe['schedule']:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        for scheduler in [
            PARAM_SCHEDULERS.build(step, default_args=dict(optimizer=optimizer)) for step in cfg.param_scheduler
        ]:
            for _ in range(epoch if scheduler.by_epoch else iteration):
                scheduler.step()
        rate = optimizer.param_groups[0]['lr']
        # mmengine reaches the end of a slope one iteration earlier than mmcv 1.x did.
        assert rate == pytest.approx(factor, rel=5e-3, abs=1e-6), (epoch, iteration)


@pytest.mark.parametrize(('name', 'recipe', 'common'), CASES)
def test_what_is_trained(built, name, recipe, common):
    cfg, model = built(name)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == recipe['frozen']
    assert all(module.training for module in model.train().modules() if isinstance(module, BATCH_NORMS))


def test_metafiles_say_whose_recipe_it_is():
    models = [
        model for path in ROOT.glob('configs/*/metafile.yml') for model in yaml.safe_load(path.read_text())['Models']
    ]
    checked = {name for recipe in RECIPES for name in recipe['models']}
    assert {model['Config'] for model in models if model['Metadata']['Recipe'] == 'released'} == checked
    assert {model['Config'] for model in models if 'Results' in model} <= checked
    for model in models:
        cfg = Config.fromfile(ROOT / model['Config'])
        assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size, model['Config']
