"""The networks that the tools of this folder take by name."""

import argparse
import ast
import importlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from mmvisattn import cli
from mmvisattn.errors import UserError, nearest
from mmvisattn.models import backbones, necks
from mmvisattn.testing import REFERENCES, to_reference

import timm
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit, Sequential, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .measure import parse_size

NAMES = (
    'config file, config of a toolbox (mmdet::retinanet/retinanet_r50_fpn_1x_coco.py), backbone of ours with arch and '
    'options (FCViT:b12 or DefocusMamba:base,token_order=raster), or model of timm (timm:resnet50); with `reference:` '
    'before it an FCViT or De-focus Mamba in the plain formulation'
)
PARTS = ('backbone', 'neck', 'model')


def add_arguments(parser: argparse.ArgumentParser, nargs: str = '+', size: tuple[int, int] = (512, 512)) -> None:
    """The arguments that name networks, what to take of them, and the sizes of images.

    Args:
        parser (argparse.ArgumentParser): Their parser.
        nargs (str): How many names: ``'+'`` or ``'*'``.
        size (tuple[int, int]): Default of ``--sizes``, height and width.
    """
    parser.add_argument('names', nargs=nargs, metavar='NAME', help=NAMES)
    told = f'default: {size[0]}x{size[1]}'
    parser.add_argument('--sizes', type=parse_size, nargs='+', default=[size], metavar='HxW', help=told)
    told = 'what to take of a config; `neck` has the backbone with it; default: model'
    parser.add_argument('--part', choices=PARTS, default='model', help=told)


def build(name: str, part: str, size: tuple[int, int]) -> nn.Module:
    """Build a network with random weights.

    Args:
        name (str): See ``NAMES``.
        part (str): What to take of a config: ``'backbone'``, ``'neck'`` (with the backbone before it) or ``'model'``.
        size (tuple[int, int]): Height and width of the images in pixels, for networks that are built for one size.

    Raises:
        UserError: If there is no such network, or the config has no such part.
    """
    if name.startswith('reference:'):
        network = to_reference(build(name.removeprefix('reference:'), part, size))
        if network is None:
            known = ' and '.join(backbone.__name__ for backbone in REFERENCES)
            raise UserError(f'{name!r}: there are plain formulations of {known} alone')
        return network
    if name.startswith('timm:'):
        return _build_timm(name.removeprefix('timm:'), size)
    if is_config(name):
        return _build_config(name, part)
    return _build_own(backbones, name)


def build_neck(name: str) -> nn.Module:
    """A neck of ours by a name with its options, such as ``SimpleFPN:in_channels=384``."""
    return _build_own(necks, name)


def is_neck(name: str) -> bool:
    """Whether a name is that of a neck of ours."""
    return name.partition(':')[0] in necks.__all__


def is_config(name: str) -> bool:
    """Whether a name is that of a config."""
    return '::' in name or '/' in name or Path(name).suffix in cli.CONFIG_SUFFIXES


def _build_timm(name: str, size: tuple[int, int]) -> nn.Module:
    if not timm.is_model(name):
        raise UserError(f'timm {timm.__version__} has no {name!r}{nearest(name, timm.list_models())}')
    settings = timm.get_pretrained_cfg(name)
    fixed = dict(img_size=size) if settings and settings.fixed_input_size else {}
    network = timm.create_model(name, num_classes=0, **fixed)
    network.forward = network.forward_features  # dense prediction has no use for the pooled vector
    return network


def _build_config(name: str, part: str) -> nn.Module:
    cfg = cli.load_config(config_path(name) if '::' in name else name)
    wanted = dict(backbone=['backbone'], neck=['backbone', 'neck'], model=[])[part]
    missing = [key for key in wanted if cfg.model.get(key) is None]
    if missing:
        raise UserError(f'the model of {name!r} has no {missing[0]}; take another --part of {PARTS}')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        parts = OrderedDict((key, MODELS.build(cfg.model[key])) for key in wanted)
        network = MODELS.build(cfg.model) if part == 'model' else parts['backbone']
    if part == 'neck':
        network = Sequential(parts)
    if not any(parameter.is_meta for parameter in network.parameters()):
        initialise(network)
    return revert_sync_batchnorm(network)


def initialise(network: nn.Module) -> None:
    """Random weights as in training: some parameters (DINO's ``level_embed``) hold what the memory held until then."""
    for module in network.modules():
        init_cfg = getattr(module, 'init_cfg', None)
        if init_cfg:
            inits = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
            module.init_cfg = [init for init in inits if init['type'] not in ('Pretrained', PretrainedInit)]
    MMLogger.get_current_instance().setLevel('WARNING')  # else one line for each parameter
    if hasattr(network, 'init_weights'):
        network.init_weights()


def config_path(name: str) -> str:
    """Where the config of a toolbox is, by a name such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``."""
    scope, _, path = name.partition('::')
    if scope not in cli.TOOLBOXES:
        raise UserError(f'{name!r} names no toolbox; give one of {sorted(cli.TOOLBOXES)} before `::`')
    try:
        toolbox = importlib.import_module(scope)
    except ModuleNotFoundError as error:
        raise UserError(f'{name!r} is a config of {cli.TOOLBOXES[scope]}, which is not installed') from error
    return str(Path(toolbox.__file__).parent / '.mim/configs' / path)


def _build_own(room: ModuleType, name: str) -> nn.Module:
    family, _, options = name.partition(':')
    if family not in room.__all__:
        hint = f" (did you mean 'timm:{name}'?)" if timm.is_model(name) else nearest(family, room.__all__)
        raise UserError(f'{name!r} is no network{hint}; give a {NAMES}')
    arch, *pairs = options.split(',')
    if room is necks:  # which have no arch
        arch, pairs = '', options.split(',')
    if not all('=' in pair for pair in pairs):
        raise UserError(f'{name!r} is not of the form {family}:{"" if room is necks else "ARCH,"}OPTION=VALUE,…')
    settings = dict(arch=arch) if arch else {}
    settings |= {key: _parse_value(value) for key, _, value in (pair.partition('=') for pair in pairs)}
    cli.check_model_options(dict(type=f'mmvisattn.{family}', **settings), family)
    return getattr(room, family)(**settings)


def _parse_value(text: str) -> object:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text
