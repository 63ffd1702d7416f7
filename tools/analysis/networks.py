"""The networks that the tools of this folder take by name, and random inputs for them."""

import ast
import importlib
from contextlib import suppress
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError, nearest
from mmvisattn.models import backbones

import numpy as np
import timm
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, BaseModule, PretrainedInit, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from references import REFERENCES, to_reference
from torch import Tensor, nn

NAMES = (
    'config file, config of a toolbox (mmdet::retinanet/retinanet_r50_fpn_1x_coco.py), backbone of ours with arch and '
    'options (FCViT:b12 or DefocusMamba:base,token_order=raster), or model of timm (timm:resnet50); with `reference:` '
    'before it an FCViT or De-focus Mamba in the plain formulation'
)
PARTS = ('backbone', 'neck', 'model')
OBJECTS = 8  # in each image that a detector is trained on


class BackboneAndNeck(BaseModule):
    """A model without its heads.

    Args:
        backbone: (B, 3, H, W) → maps.
        neck: Maps → maps.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → the maps of the neck."""
        return tuple(self.neck(self.backbone(x)))


def build(name: str, part: str, size: tuple[int, int]) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: See ``NAMES``.
        part: What to take of a config: ``'backbone'``, ``'neck'`` (with the backbone before it) or ``'model'``.
        size: Height and width of the images in pixels, for networks that are built for one size.

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
    if '::' in name or '/' in name or Path(name).suffix in cli.CONFIG_SUFFIXES:
        return _build_config(name, part)
    return _build_backbone(name)


def _build_timm(name: str, size: tuple[int, int]) -> nn.Module:
    if not timm.is_model(name):
        raise UserError(f'timm {timm.__version__} has no {name!r}{nearest(name, timm.list_models())}')
    settings = timm.get_pretrained_cfg(name)
    fixed = dict(img_size=size) if settings and settings.fixed_input_size else {}
    network = timm.create_model(name, num_classes=0, **fixed)
    network.forward = network.forward_features  # dense prediction has no use for the pooled vector
    return network


def _build_config(name: str, part: str) -> nn.Module:
    cfg = cli.load_config(_config_path(name) if '::' in name else name)
    wanted = dict(backbone=['backbone'], neck=['backbone', 'neck'], model=[])[part]
    missing = [key for key in wanted if cfg.model.get(key) is None]
    if missing:
        raise UserError(f'the model of {name!r} has no {missing[0]}; take another --part of {PARTS}')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        parts = [MODELS.build(cfg.model[key]) for key in wanted]
        network = MODELS.build(cfg.model) if part == 'model' else parts[0]
    if part == 'neck':
        network = BackboneAndNeck(*parts)
    if not any(parameter.is_meta for parameter in network.parameters()):
        _initialise(network)
    return revert_sync_batchnorm(network)


def _initialise(network: nn.Module) -> None:
    """Random weights as in training: some parameters (DINO's ``level_embed``) hold what the memory held until then."""
    for module in network.modules():
        init_cfg = getattr(module, 'init_cfg', None)
        if init_cfg:
            inits = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
            module.init_cfg = [init for init in inits if init['type'] not in ('Pretrained', PretrainedInit)]
    MMLogger.get_current_instance().setLevel('WARNING')  # else one line for each parameter
    if hasattr(network, 'init_weights'):
        network.init_weights()


def _config_path(name: str) -> str:
    scope, _, path = name.partition('::')
    if scope not in cli.TOOLBOXES:
        raise UserError(f'{name!r} names no toolbox; give one of {sorted(cli.TOOLBOXES)} before `::`')
    try:
        toolbox = importlib.import_module(scope)
    except ModuleNotFoundError as error:
        raise UserError(f'{name!r} is a config of {cli.TOOLBOXES[scope]}, which is not installed') from error
    return str(Path(toolbox.__file__).parent / '.mim/configs' / path)


def _build_backbone(name: str) -> nn.Module:
    family, _, options = name.partition(':')
    if family not in backbones.__all__:
        hint = f" (did you mean 'timm:{name}'?)" if timm.is_model(name) else nearest(family, backbones.__all__)
        raise UserError(f'{name!r} is no network{hint}; give a {NAMES}')
    arch, *pairs = options.split(',')
    if not all('=' in pair for pair in pairs):
        raise UserError(f'{name!r} is not of the form {family}:ARCH,OPTION=VALUE,…')
    settings = dict(arch=arch) if arch else {}
    settings |= {key: _parse_value(value) for key, _, value in (pair.partition('=') for pair in pairs)}
    cli.check_model_options(dict(type=f'mmvisattn.{family}', **settings), family)
    return getattr(backbones, family)(**settings)


def _parse_value(text: str) -> object:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def random_inputs(network: nn.Module, batch: int, size: tuple[int, int], device: torch.device) -> tuple:
    """What ``network(*inputs)`` takes: images, and for a whole model what a data set tells of them.

    Args:
        network: Result of :func:`build`.
        batch: Number of images.
        size: Height and width in pixels.
        device: Where to put the inputs.
    """
    images = torch.randn(batch, 3, *size, device=device)
    if not isinstance(network, BaseModel):
        return (images,)
    make = _segmentation_sample if hasattr(network, 'decode_head') else _detection_sample
    samples = [make(network, size) for _ in range(batch)]
    for i, sample in enumerate(samples):
        sizes = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
        sample.set_metainfo(dict(img_id=i, scale_factor=(1.0, 1.0), flip=False, **sizes))
    return images, [sample.to(device) for sample in samples]


def _detection_sample(network: nn.Module, size: tuple[int, int]) -> object:
    """Boxes of a tenth to a half of the image's sides, with masks that fill them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0.25, 0.75, (OBJECTS, 2)), rng.uniform(0.1, 0.5, (OBJECTS, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1) * ([size[1], size[0]] * 2)
    masks = np.zeros((OBJECTS, *size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().astype(int)):
        mask[top:bottom, left:right] = 1
    objects = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.zeros(OBJECTS, dtype=torch.int64),
        masks=BitmapMasks(masks, *size),
    )
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return DetDataSample(gt_instances=objects, ignored_instances=nothing)


def _segmentation_sample(network: nn.Module, size: tuple[int, int]) -> object:
    """A class by chance for each pixel."""
    from mmseg.structures import SegDataSample

    return SegDataSample(gt_sem_seg=PixelData(data=torch.randint(network.num_classes, (1, *size))))
