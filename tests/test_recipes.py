"""Published models are trained and tested as their authors did it; so say the files in ``data/recipes``.

A fact is looked up where it acts: in the built model, optimizer or schedule, and in the resolved config where none of
them has it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS
from timm.layers import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .test_configs import METAFILES, ROOT, load

RECIPES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / 'tests/data/recipes').glob('*.yml'))]
PUBLISHED = {f'configs/{told["folder"]}/{name}.py': told['facts'] for told in RECIPES for name in told['configs']}
KINDS = {
    'batch',  # all images of a step, and those of one GPU where a network's results depend on it
    'batch_norms',  # of the backbone
    'config',  # keys of the resolved config, and attributes of the built model
    'model',
    'drop_path',  # rate of the last block
    'frozen',
    'groups',  # learning rate and decay of parameters; the first pattern that is found in a name counts
    'optimizer',
    'training',  # length
    'learning_rate',  # factor at the start of an iteration, and at the end of an epoch, both counted from 0
    'train_pipeline',
    'test_sizes',  # width and height of an image, and as the network gets it
}
SYNCHRONISED = [
    'fcvit/fcvit-b12_upernet_8xb2-160k_ade20k-512x512',
    'fcvit/fcvit-b24_upernet_8xb2-160k_ade20k-512x512',
    'fcvit/cascade-mask-rcnn_fcvit-b24_fpn_amp-ms-3x_coco',
]


@dataclass
class Recipe:
    cfg: Config
    model: nn.Module
    facts: list[dict]

    def facts_of(self, kind: str) -> dict | str | float | list:
        """What is told under one heading; dicts of several files are put together."""
        told = [block[kind] for block in self.facts if kind in block]
        assert told, f'nothing is told about {kind}'
        if isinstance(told[0], dict):
            return {key: value for facts in told for key, value in facts.items()}
        (fact,) = told
        return fact


@pytest.fixture(scope='module', params=PUBLISHED, ids=lambda path: Path(path).stem)
def recipe(request) -> Recipe:
    cfg = load(Path(request.param))
    with torch.device('meta'):
        model = MODELS.build(cfg.model).train()
    facts = [
        block for block in PUBLISHED[request.param] if re.search(block.get('configs', ''), Path(request.param).stem)
    ]
    return Recipe(cfg, model, facts)


def lookup(node: object, path: str) -> object:
    for key in path.split('.'):
        node = node[key] if isinstance(node, dict) else getattr(node, key)
    return node


def plain(node: object) -> object:
    """Tuples as lists, without what mmengine adds."""

    def strip(node):
        if isinstance(node, dict):
            return {k: strip(v) for k, v in node.items() if k != '_scope_' and (k, v) != ('backend_args', None)}
        return [strip(child) for child in node] if isinstance(node, list) else node

    return strip(json.loads(json.dumps(node)))


def test_facts_are_of_a_kind_that_is_checked():
    blocks = [block for facts in PUBLISHED.values() for block in facts]
    assert {kind for block in blocks for kind in block} == KINDS | {'file', 'configs'}


def test_config(recipe):
    expected = recipe.facts_of('config')
    assert {key: plain(lookup(recipe.cfg, key)) for key in expected} == expected


def test_model(recipe):
    expected = recipe.facts_of('model')
    assert {key: plain(lookup(recipe.model, key)) for key in expected} == expected


def test_batch(recipe):
    total, _, each = str(recipe.facts_of('batch')).partition(' of ')
    assert recipe.cfg.auto_scale_lr.base_batch_size == int(total)
    assert recipe.cfg.train_dataloader.batch_size == int(each or recipe.cfg.train_dataloader.batch_size)


def test_optimizer(recipe):
    expected = recipe.facts_of('optimizer')
    wrapper = dict(recipe.cfg.optim_wrapper)
    assert wrapper.pop('type') == expected['wrapper']
    built = build_optim_wrapper(recipe.model, dict(wrapper, type='OptimWrapper'))  # mixed precision asks for a GPU
    assert type(built.optimizer).__name__ == expected['type']
    assert plain(wrapper.get('clip_grad')) == expected['clip_grad']
    assert wrapper.get('accumulative_counts', 1) == 1
    names = {parameter: name for name, parameter in recipe.model.named_parameters()}
    seen = set()
    for group in built.optimizer.param_groups:
        assert list(group['betas']) == expected['betas']
        for parameter in group['params']:
            name = names[parameter]
            told = next(rule for rule in recipe.facts_of('groups') if re.search(rule['name'], name))
            assert (group['lr'], group['weight_decay']) == pytest.approx((told['lr'], told['weight_decay'])), name
            seen.add(name)
    assert seen == {name for name, parameter in recipe.model.named_parameters() if parameter.requires_grad}


def test_learning_rate(recipe):
    number, unit = recipe.facts_of('training').split()
    loop = recipe.cfg.train_cfg
    assert loop.type == ('EpochBasedTrainLoop' if unit == 'epochs' else 'IterBasedTrainLoop')
    assert (loop.max_epochs if unit == 'epochs' else loop.max_iters) == int(number)

    epoch_length = 600 if unit == 'epochs' else int(number)  # longer than the warm-up
    num_iters = int(number) * epoch_length if unit == 'epochs' else int(number)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(step), default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for step in recipe.cfg.param_scheduler
    ]
    expected = recipe.facts_of('learning_rate')
    at = expected['iterations'] | {(e + 1) * epoch_length - 1: f for e, f in expected.get('epochs', {}).items()}
    seen = {}
    for i in range(num_iters):
        if i in at:
            seen[i] = optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % epoch_length == 0:
                scheduler.step()
    assert seen == pytest.approx(at, rel=5e-3, abs=1e-4)


def test_train_pipeline(recipe):
    assert plain(recipe.cfg.train_dataloader.dataset.pipeline) == recipe.facts_of('train_pipeline')


def test_test_sizes(recipe):
    assert recipe.cfg.test_dataloader == recipe.cfg.val_dataloader
    resizes = [t for t in recipe.cfg.test_dataloader.dataset.pipeline if 'Resize' in t.type]
    others = [t.type for t in recipe.cfg.test_dataloader.dataset.pipeline if 'Resize' not in t.type]
    assert [name.removesuffix('DetInputs').removesuffix('SegInputs') for name in others] == [
        *('LoadImageFromFile', 'LoadAnnotations', 'Pack')
    ]
    for (width, height), expected in recipe.facts_of('test_sizes'):
        results = dict(img=np.zeros((height, width, 3), np.uint8), img_shape=(height, width))
        for transform in resizes:
            results = TRANSFORMS.build(transform)(results)
        assert list(results['img'].shape[1::-1]) == expected


def test_drop_path(recipe):
    """Rises linearly over the blocks, and no hook changes it."""
    rate = recipe.facts_of('drop_path')
    rates = [module.drop_prob for module in recipe.model.backbone.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx(np.linspace(0, rate, len(rates)))
    assert bool(rates) or rate == 0
    hooks = ['mmvisattn.CheckpointReportHook', 'mmvisattn.ResumeHook']
    assert [hook.type for hook in recipe.cfg.custom_hooks] == hooks


def test_frozen(recipe):
    assert recipe.facts_of('frozen') == 'nothing'
    frozen = {name for name, parameter in recipe.model.named_parameters() if not parameter.requires_grad}
    # The last token of a causal sequence, of which the map is made without: no gradient would reach it.
    assert frozen <= {'backbone.cls_token'}


def test_batch_norms(recipe):
    norms = [module for module in recipe.model.backbone.modules() if isinstance(module, _BatchNorm)]
    told = [block for block in recipe.facts if 'batch_norms' in block]
    assert bool(norms) == bool(told)
    if norms:
        assert recipe.facts_of('batch_norms') == 'trained, each GPU for itself'
        assert all(type(norm) is nn.BatchNorm2d and norm.training for norm in norms)
        assert 'sync_bn' not in recipe.cfg


@pytest.mark.parametrize('name', SYNCHRONISED, ids=lambda name: Path(name).stem)
def test_batch_norms_of_small_batches_are_synchronised(name):
    cfg = load(Path('configs', f'{name}.py'))
    with torch.device('meta'):
        backbone = convert_sync_batchnorm(MODELS.build(cfg.model.backbone), cfg.sync_bn)
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) == 4 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


@pytest.mark.parametrize('name', SYNCHRONISED, ids=lambda name: Path(name).stem)
def test_learning_rates_of_fcvit_fall_from_stage_to_stage(name):
    cfg = load(Path('configs', f'{name}.py'))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    built = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper')).optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay, base = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate, cfg.optim_wrapper.optimizer.lr
    for group in built.param_groups:
        (parameter,) = group['params']
        name = names[parameter]
        depth = 5
        if name.startswith('backbone.patch_embed.'):
            depth = 0
        elif name.startswith('backbone.network.'):
            depth = (int(name.split('.')[2]) + 3) // 2
        assert group['lr'] == pytest.approx(base * decay ** (5 - depth)), name
        assert group['weight_decay'] == (0 if parameter.ndim == 1 else 0.05), name


def test_metafiles_and_readmes_tell_what_is_ours():
    models = [model for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]
    recipes = {model['Config']: model['Metadata']['Recipe'] for model in models}
    assert {path for path, told in recipes.items() if told == 'published'} == set(PUBLISHED)
    assert set(recipes.values()) == {'published', 'ours'}
    for path, told in recipes.items():
        config = Path(path)
        rows = (ROOT / config.parent / 'README.md').read_text().splitlines()
        (row,) = [row for row in rows if row.startswith('|') and f'({config.name})' in row]
        assert f'| {told} |' in row, row
    assert not any('Results' in model for model in models if model['Metadata']['Recipe'] == 'ours')
