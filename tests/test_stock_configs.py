"""The lines that docs/own_project.md gives for a config of one's own, over stock configs of both toolboxes."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mmvisattn.models  # noqa: F401  before any device is set: torch 2.8 cannot import its compiler under one

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r'```python\n(_base_ = .*?)```', (ROOT / 'docs/own_project.md').read_text(), re.DOTALL)
LINES = {scope: block for block in BLOCKS for scope in ('mmdet', 'mmseg') if f"'{scope}::" in block}
CONFIGS = {toolbox.__name__: Path(toolbox.__file__).parent / '.mim/configs' for toolbox in (mmdet, mmseg)}
FAMILIES = [
    f'{scope}/{folder.name}'
    for scope, root in CONFIGS.items()
    for folder in sorted(root.iterdir())
    if folder.name != '_base_'
]
NO_BACKBONE = ['mmdet/common', 'mmseg/san']


def places(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where in a model's config the backbones stand: ``()`` at its top, or such as ``('detector',)``."""
    if isinstance(node, dict):
        if isinstance(node.get('backbone'), dict):
            yield path
        for key, child in node.items():
            yield from places(child, (*path, key))


def load(path: Path) -> Config:
    """A config; what it has imported may need a package that is not installed (mmpretrain)."""
    return Config.fromfile(path, import_custom_modules=False)


@cache
def stock_config(family: str) -> Config | None:
    """The first config of a family whose model has a backbone, with hooks or imports of its own where one has them."""
    scope, _, folder = family.partition('/')
    paths = sorted((CONFIGS[scope] / folder).rglob('*.py'))
    for path in sorted(paths, key=lambda path: not re.search(r'^custom_(hooks|imports)', path.read_text(), re.M)):
        try:
            cfg = load(path)
        except ModuleNotFoundError:  # a base of a toolbox that is not installed
            continue
        if list(places(cfg.get('model'))):
            return cfg
    return None


def apply_lines(family: str, folder: Path, **following: dict) -> Config:
    """The page's lines over a stock config; ``following`` is in place of the lines about what follows the backbone."""
    stock = stock_config(family)
    lines, _, model = LINES[family[:5]].partition('model = ')
    model = {key: value for key, value in eval(model).items() if key in ('pretrained', 'backbone')}
    model['backbone'].pop('init_cfg')
    if 'pretrained' not in stock.model:
        model.pop('pretrained', None)
    model['backbone'].update(following.pop('backbone', {}))
    model.update(following)
    for key in reversed(next(places(stock.model))):
        model = {key: model}
    bases = [str(ROOT / 'configs/_base_/mmvisattn.py'), stock.filename]
    path = folder / 'config.py'
    path.write_text(re.sub('_base_ = .*', f'_base_ = {bases}', lines, count=1) + f'model = {model}\n')
    return load(path)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_stock_family(family, tmp_path):
    stock = stock_config(family)
    if family in NO_BACKBONE:
        assert stock is None
        return
    cfg = apply_lines(family, tmp_path)
    part = cfg.model
    for key in next(places(stock.model)):
        part = part[key]
    assert part.backbone == dict(type='mmvisattn.FCViT', arch='b12')
    hooks = [hook.type for hook in stock.get('custom_hooks', [])]
    assert [hook.type for hook in cfg.custom_hooks] == [*hooks, 'mmvisattn.CheckpointReportHook']
    assert cfg.get('custom_imports') == stock.get('custom_imports')


CHANNELS = [64, 128, 320, 512]
FOUR = dict(neck=dict(in_channels=CHANNELS))
THREE = dict(backbone=dict(out_indices=(1, 2, 3)), neck=dict(in_channels=CHANNELS[1:]))
# What a user writes about the parts that follow the backbone.
FOLLOWING = {
    'mmdet/atss': FOUR,
    'mmdet/cascade_rcnn': FOUR,
    'mmdet/dino': THREE,
    'mmdet/mask2former': dict(panoptic_head=dict(in_channels=CHANNELS)),
    'mmdet/rtmdet': THREE,
    'mmdet/soft_teacher': FOUR,
    'mmdet/yolact': FOUR,
    'mmdet/yolof': dict(backbone=dict(out_indices=(3,)), neck=dict(in_channels=512)),
    'mmdet/yolox': THREE,
    'mmseg/mask2former': dict(decode_head=dict(in_channels=CHANNELS)),
    'mmseg/point_rend': FOUR,
    'mmseg/segformer': dict(decode_head=dict(in_channels=CHANNELS)),
}


@pytest.mark.parametrize('family', FOLLOWING)
def test_stock_models_build(family, tmp_path):
    build_and_extract(apply_lines(family, tmp_path, **FOLLOWING[family]))


@pytest.mark.parametrize('scope', LINES)
def test_lines_as_they_stand(scope, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(LINES[scope])
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    build_and_extract(cfg)


def build_and_extract(cfg: Config) -> None:
    """Build a model and compute its features, without memory."""
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        model = getattr(model, 'student', model)
        assert type(model.backbone).__name__ == 'FCViT'
        model.extract_feat(torch.empty(1, 3, 64, 64))
