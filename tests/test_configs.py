"""Every shipped config loads, builds, and is found where README and metafiles say it is."""

import copy
import functools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / 'configs').glob('[!_]*/*.py'))
METAFILES = [ROOT / path for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
NO_WEIGHTS = ('defocus-mamba-s', 'defocus-retnet-b')  # nobody has released any


@functools.cache
def read(path: Path) -> Config:
    return Config.fromfile(ROOT / path)


def load(path: Path) -> Config:
    cfg = copy.deepcopy(read(path))
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
    assert cfg.auto_scale_lr.enable is False  # the toolboxes' own train.py turns on what is there
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


@pytest.mark.parametrize('path', [path for path in CONFIGS if 'ade20k' in path.stem], ids=lambda path: path.stem)
def test_void_is_said_by_the_dataset_alone(path, recwarn):
    """Of a pipeline that says it too mmseg warns, and whoever takes a shipped config can do nothing about it."""
    cfg = load(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
        assert dataset.reduce_zero_label
    assert not [warning for warning in recwarn if 'reduce_zero_label' in str(warning.message)]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_pictures_reach_the_network_with_what_predicting_asks_for(path, tmp_path):
    """mmdet's heads scale boxes back by ``scale_factor``, which a pipeline without ``Resize`` does not tell."""
    cfg = load(path)
    picture, labels = tmp_path / 'a.png', tmp_path / 'labels.png'
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))
    cv2.imwrite(str(labels), np.full((60, 80), 1, np.uint8))
    truth = dict(instances=[], seg_map_path=str(labels), label_map=None, reduce_zero_label=True)
    for dataloader in (cfg.val_dataloader, cfg.test_dataloader):
        pipeline = Compose([TRANSFORMS.build(step) for step in dataloader.dataset.pipeline])
        with torch.device('cpu'):
            packed = pipeline(dict(img_path=str(picture), img_id=1, seg_fields=[], **truth))
        meta = packed['data_samples'].metainfo
        assert meta['ori_shape'] == (60, 80)
        assert 'scale_factor' in meta or cfg.default_scope == 'mmseg'
        assert packed['inputs'].shape[1:] == meta['img_shape']


def network_in_names(backbone: dict) -> str:
    """Such as ``fcvit-b12``, ``defocus-mamba-b`` or ``flexvit-b``."""
    family, arch = backbone.type.removeprefix('mmvisattn.'), backbone.arch
    if family.startswith('Defocus'):
        return f'defocus-{family.removeprefix("Defocus").lower()}-{arch[0]}'
    return f'{family.lower()}-{arch[0] if family == "FlexViT" else arch}'


def necks(cfg: Config) -> list[dict]:
    neck = cfg.model.get('neck') or []
    return neck if isinstance(neck, list) else [neck]


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.parent.name != 'mini'], ids=lambda path: path.stem)
def test_names_say_what_is_inside(path):
    cfg = load(path)
    name = path.stem
    network = network_in_names(cfg.model.backbone)
    assert f'{network}_' in name
    init_cfg = cfg.model.backbone.init_cfg
    assert init_cfg is None if network in NO_WEIGHTS else init_cfg.type == 'Pretrained'
    assert cfg.default_scope == ('mmseg' if 'ade20k' in name else 'mmdet')
    batch = cfg.train_dataloader.batch_size
    batches = f'{cfg.auto_scale_lr.base_batch_size // batch}xb{batch}'
    if 'ade20k' in name:
        assert f'_{batches}-{cfg.train_cfg.max_iters // 1000}k_' in name
    if 'dino' in name:
        assert f'_{batches}-{cfg.train_cfg.max_epochs}e_' in name
    if '_amp-' in name:
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    types = [neck.type for neck in necks(cfg)]
    assert ('_flexattention_' in name) == ('mmvisattn.FlexAttentionNeck' in types)
    if '_simple-fpn_' in name:
        assert types == ['mmvisattn.SimpleFPN']


@pytest.mark.parametrize(
    ('name', 'backbone', 'millions'),
    [
        ('dino-4scale_defocus-mamba-b_8xb2-12e_coco', 91_112_832, 115),  # published
        ('dino-4scale_defocus-mamba-l_8xb2-12e_coco', 317_674_240, 344),
        ('mask-rcnn_defocus-mamba-s_simple-fpn_1x_coco', 24_322_944, 45),
        ('mask-rcnn_defocus-mamba-b_simple-fpn_1x_coco', 91_112_832, 114),
        ('mask-rcnn_defocus-vit-s_simple-fpn_1x_coco', 21_590_088, 42),
        ('mask-rcnn_defocus-vit-b_simple-fpn_1x_coco', 85_647_120, 109),
        ('mask-rcnn_defocus-retnet-b_simple-fpn_1x_coco', 92_734_224, 116),
        ('defocus-mamba-s_upernet_8xb2-160k_ade20k-512x512', 24_322_944, 56),
        ('defocus-mamba-b_upernet_8xb2-160k_ade20k-512x512', 91_112_832, 125),
        ('defocus-vit-b_upernet_8xb2-160k_ade20k-512x512', 85_647_120, 120),
        ('defocus-retnet-b_upernet_8xb2-160k_ade20k-512x512', 92_734_224, 127),
    ],
)
def test_parameters_of_defocus(name, backbone, millions):
    model = MODELS.build(load(Path('configs/defocus', f'{name}.py')).model)
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == backbone
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ('name', 'backbone', 'millions'),
    [
        ('mask-rcnn_flexvit-s_simple-fpn_1x_coco', 22_869_893, 44),
        ('mask-rcnn_flexvit-b_simple-fpn_1x_coco', 90_547_205, 114),
        ('mask-rcnn_fcvit-b12_fpn_flexattention_1x_coco', 14_189_856, 37),
        ('cascade-mask-rcnn_flexvit-s_simple-fpn_amp-ms-3x_coco', 22_869_893, 77),
        ('cascade-mask-rcnn_flexvit-b_simple-fpn_amp-ms-3x_coco', 90_547_205, 147),
        ('dino-4scale_flexvit-b_8xb2-12e_coco', 90_547_205, 113),
        ('flexvit-s_upernet_8xb2-160k_ade20k-512x512', 22_869_893, 55),
        ('flexvit-b_upernet_8xb2-160k_ade20k-512x512', 90_547_205, 125),
        ('fcvit-b12_fpn_flexattention_4xb8-40k_ade20k-512x512', 14_189_856, 21),
    ],
)
def test_parameters_of_flexattention(name, backbone, millions):
    model = MODELS.build(load(Path('configs/flexattention', f'{name}.py')).model)
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == backbone
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.6)  # DINO of the fork of mmdet has 0.13 more than mmdet's


@pytest.mark.parametrize('path', [p for p in CONFIGS if 'flexvit-b_' in p.stem], ids=lambda path: path.stem)
def test_recipe_of_flexvit(path):
    cfg = load(path)
    assert [hook.type for hook in cfg.custom_hooks].count('mmvisattn.FlexRampHook') == 1
    model = MODELS.build(cfg.model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper')).optimizer.param_groups:
        (parameter,) = group['params']
        name = names[parameter]
        depth = 13  # the norms of the backbone and all that follows it
        if name.startswith(('backbone.patch_embed', 'backbone.pos_embed')):
            depth = 0
        elif name.startswith('backbone.blocks.'):
            depth = int(name.split('.')[2]) + 1
        assert group['lr'] == pytest.approx(1e-4 * 0.8 ** (13 - depth)), name
        decay = 0 if parameter.ndim == 1 or name == 'backbone.pos_embed' else 1e-4 if 'dino' in path.stem else 0.05
        assert group['weight_decay'] == decay, name


@pytest.mark.parametrize(
    ('name', 'plain'),
    [
        ('flexattention/mask-rcnn_fcvit-b12_fpn_flexattention_1x_coco', 'fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco'),
        (
            'flexattention/fcvit-b12_fpn_flexattention_4xb8-40k_ade20k-512x512',
            'fcvit/fcvit-b12_fpn_4xb8-40k_ade20k-512x512',
        ),
        ('mini/mask-rcnn_fcvit-mini_fpn_flexattention_coco', 'mini/mask-rcnn_fcvit-mini_fpn_coco'),
        ('mini/atss_fcvit-search_fpn_flexattention_coco', 'mini/atss_fcvit-search_fpn_coco'),
    ],
)
def test_flexattention_neck_is_all_that_is_added(name, plain):
    cfg, expected = (load(Path('configs', f'{stem}.py')) for stem in (name, plain))
    first, added = cfg.model.neck
    assert first == expected.model.neck
    assert added.type == 'mmvisattn.FlexAttentionNeck' and added.in_channels == first.out_channels
    cfg.model.neck = first
    hooks = [dict(type='mmvisattn.PaddingHook'), dict(type='mmvisattn.CellLossHook', labels_first=False)]
    assert cfg.custom_hooks[len(expected.custom_hooks) :][:2] == hooks
    cfg.custom_hooks = expected.custom_hooks
    for parts in ('flexattention', 'flexattention_hooks'):  # of which the small configs are made
        cfg.pop(parts, None)
    assert cfg.to_dict() == expected.to_dict()


# Heads that read a pyramid by its strides, and the stride of the map that SimpleFPN makes it from.
@pytest.mark.parametrize(
    'path',
    [p for p in CONFIGS if 'flexvit' in p.stem and 'mask-rcnn' in p.stem],
    ids=lambda path: path.stem,
)
def test_strides_of_flexvit(path):
    model = load(path).model
    finest = model.backbone.get('patch_size', 16) // 4 * 2 ** model.neck.get('start_level', 0)
    strides = [finest * 2**i for i in range(model.neck.num_outs)]
    assert model.rpn_head.anchor_generator.strides == strides
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        assert extractor.featmap_strides == strides[: len(extractor.featmap_strides)]


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


def test_metafiles_keep_the_rules_of_openmmlab():
    parts = [yaml.safe_load(path.read_text()) for path in METAFILES]
    collections = {part['Name']: part for file in parts for part in file['Collections']}
    models = [model for file in parts for model in file['Models']]
    assert len({model['Name'] for model in models}) == len(models)
    for collection in collections.values():
        assert {'Name', 'Metadata', 'Paper', 'README', 'Code'} <= set(collection)
        assert {'Title', 'URL'} <= set(collection['Paper'])
        assert (ROOT / collection['README']).is_file() and (ROOT / collection['Code']['URL']).exists()
    for model in models:
        assert {'Name', 'In Collection', 'Config', 'Metadata'} <= set(model)
        assert model['In Collection'] in collections and model['Metadata']['Training Data'] in ('COCO', 'ADE20K')
        for result in model.get('Results', []):
            assert result['Task'] in ('Object Detection', 'Instance Segmentation', 'Semantic Segmentation')
            assert all(isinstance(value, float) for value in result['Metrics'].values())


@pytest.mark.parametrize('folder', sorted({path.parent for path in CONFIGS}), ids=str)
def test_readme_names_every_config(folder):
    text = (ROOT / folder / 'README.md').read_text()
    assert [path.name for path in CONFIGS if path.parent == folder and f'({path.name})' not in text] == []
