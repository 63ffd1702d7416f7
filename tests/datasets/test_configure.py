"""From a folder to a config: stock datasets, metrics and heads that fit it, and what follows for the recipe."""

from copy import deepcopy
from functools import cache
from pathlib import Path

from mmvisattn import cli
from mmvisattn.datasets.configure import learns_masks, set_num_classes, use_folder
from mmvisattn.datasets.recipe import dicts
from mmvisattn.errors import UserError

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from .folders import NAMES, coco, coco_folder, contents, labels_folder, one, voc_folder, write_coco, yolo_folder

ROOT = Path(__file__).resolve().parents[2]
RETINANET = 'configs/fcvit/retinanet_fcvit-b12_fpn_1x_coco.py'
MASK_RCNN = 'configs/fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco.py'
SEMANTIC_FPN = 'configs/fcvit/fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py'


# One of each kind of heads, wrappers and schedules.
SHIPPED = [
    'configs/flexattention/cascade-mask-rcnn_flexvit-b_simple-fpn_amp-ms-3x_coco.py',
    'configs/defocus/dino-4scale_defocus-mamba-b_8xb2-12e_coco.py',
    'configs/mini/defocus-mamba-mini_upernet_ade20k.py',
]


@cache
def load(config: str) -> Config:
    return cli.load_config(str(ROOT / config))


def configured(config: str, folder: Path, work_dir: Path, options: dict | None = None, **kwargs) -> Config:
    cfg = deepcopy(load(config))
    cfg.merge_from_dict(options or {})
    cfg.work_dir = str(work_dir)
    use_folder(cfg, str(folder), options, **kwargs)
    return cfg


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: Path(path).stem)
def test_shipped_configs(path, tmp_path, capsys):
    segmentor = load(path).default_scope == 'mmseg'
    folder = labels_folder(tmp_path / 'own', (0, 1, 2)) if segmentor else coco_folder(tmp_path / 'own')
    before = contents(folder)
    cfg = configured(path, folder, tmp_path / 'work')
    assert contents(folder) == before

    count = 3 if segmentor else 2
    heads = [node['num_classes'] for node in dicts(cfg.model) if 'num_classes' in node]
    assert heads and set(heads) == {count}
    init_default_scope(cfg.default_scope)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        (inner,) = [node for node in dicts(cfg[loader].dataset) if 'pipeline' in node and 'dataset' not in node]
        assert inner['type'] == ('BaseSegDataset' if segmentor else 'CocoDataset')
        dataset = DATASETS.build(inner)
        assert len(dataset) and len(dataset.metainfo['classes']) == count
        assert {'inputs', 'data_samples'} <= set(dataset[0])
    assert capsys.readouterr().out.startswith('data: ')


@pytest.mark.parametrize('make', [coco_folder, voc_folder, yolo_folder])
def test_formats_give_the_same_settings(make, tmp_path):
    folder = make(tmp_path / 'own')
    cfg = configured(RETINANET, folder, tmp_path / 'work')
    assert set(cfg.train_dataloader.dataset.metainfo.classes) == set(NAMES)
    assert cfg.model.bbox_head.num_classes == 2
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file
    assert cfg.val_evaluator.metric == 'bbox' and cfg.val_evaluator.classwise
    init_default_scope('mmdet')
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) > 1
    assert all(str(folder) in str(path) or 'work' in str(path) for path in [cfg.val_evaluator.ann_file])


def test_a_written_config_keeps_the_names(tmp_path):
    cfg = configured(MASK_RCNN, coco_folder(tmp_path / 'own'), tmp_path / 'work')
    part = Config(dict(train_dataloader=cfg.train_dataloader.to_dict()))
    part.dump(tmp_path / 'resolved.py')
    again = Config.fromfile(tmp_path / 'resolved.py')
    assert again.train_dataloader == part.train_dataloader
    assert again.train_dataloader.dataset.metainfo.classes == NAMES  # not of ASCII


def test_a_mask_model_without_outlines_names_configs_of_boxes(tmp_path):
    with pytest.raises(UserError, match=r'have boxes alone; .*retinanet_fcvit-b12_fpn_1x_coco\.py'):
        configured(MASK_RCNN, voc_folder(tmp_path / 'own'), tmp_path / 'work')


def test_a_single_class(tmp_path):
    content = coco(4, categories=[(1, 'pear')])
    folder = write_coco(tmp_path / 'own', {'train': content, 'val': coco(2, categories=[(1, 'pear')])})
    cfg = configured(MASK_RCNN, folder, tmp_path / 'work')
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 1
    init_default_scope('mmdet')
    assert DATASETS.build(cfg.train_dataloader.dataset).metainfo['classes'] == ('pear',)


def test_options_of_the_user_win_and_are_told(tmp_path, capsys):
    options = {
        'train_cfg.max_epochs': 7,
        'auto_scale_lr.enable': False,
        'train_dataloader.batch_size': 1,
        'model.bbox_head.anchor_generator.octave_base_scale': 3,
    }
    cfg = configured(RETINANET, coco_folder(tmp_path / 'own'), tmp_path / 'work', options)
    assert cfg.train_cfg.max_epochs == 7 and not cfg.auto_scale_lr.enable
    assert cfg.model.bbox_head.anchor_generator.octave_base_scale == 3
    told = capsys.readouterr().out
    assert 'train_cfg.max_epochs: left as --cfg-options train_cfg.max_epochs says' in told
    assert 'auto_scale_lr: left as' in told


def test_rotation_reaches_every_pipeline(tmp_path):
    from .folders import write_image

    folder = labels_folder(tmp_path / 'own')
    write_image(folder / 'images/0.jpg', orientation=6)
    cfg = configured(SEMANTIC_FPN, folder, tmp_path / 'work')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[0].color_type == 'color_ignore_orientation'


def test_zero_label_is_for_segmentors(tmp_path):
    with pytest.raises(UserError, match='--zero-label is for labels of pixels'):
        configured(RETINANET, coco_folder(tmp_path / 'own'), tmp_path / 'work', zero_label='void')
    cfg = configured(SEMANTIC_FPN, labels_folder(tmp_path / 'labels'), tmp_path / 'work', zero_label='void')
    assert cfg.train_dataloader.dataset.reduce_zero_label and cfg.model.decode_head.num_classes == 2


def test_outlines_that_are_missing_become_regions_to_ignore(tmp_path):
    cfg = configured(MASK_RCNN, one(tmp_path / 'own', segmentation=...), tmp_path / 'work')
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert [item['ignore_flag'] for i in range(len(dataset)) for item in dataset.get_data_info(i)['instances']] == [
        1,
        0,
        0,
        0,
    ]
    dataset[0]  # the outlines are read


def test_more_objects_than_the_model_gives_are_told(tmp_path, capsys):
    content = coco(4)
    content['annotations'] += [dict(content['annotations'][0], id=100 + i) for i in range(120)]
    folder = write_coco(tmp_path / 'own', {'train': content, 'val': coco(2)})
    configured(RETINANET, folder, tmp_path / 'work')
    assert 'an image has 121 objects, and the model gives 100 at most' in capsys.readouterr().out


def test_panoptic_models_are_refused(tmp_path):
    cfg = deepcopy(load(RETINANET))
    cfg.train_dataloader.dataset.pipeline[1].type = 'LoadPanopticAnnotations'
    cfg.work_dir = str(tmp_path / 'work')
    with pytest.raises(UserError, match='also learns labels of pixels'):
        use_folder(cfg, str(coco_folder(tmp_path / 'own')))


def test_heads_of_every_kind():
    model = dict(
        backbone=dict(num_classes=1000),
        rpn_head=dict(type='RPNHead', num_classes=1),
        roi_head=dict(bbox_head=[dict(num_classes=80), dict(num_classes=80)], mask_head=dict(num_classes=80)),
        panoptic_head=dict(
            type='Mask2FormerHead',
            num_things_classes=80,
            num_stuff_classes=53,
            loss_cls=dict(class_weight=[1.0] * 80 + [0.1]),
        ),
    )
    set_num_classes(model, 3)
    assert model['backbone']['num_classes'] == 1000 and model['rpn_head']['num_classes'] == 1
    assert [head['num_classes'] for head in model['roi_head']['bbox_head']] == [3, 3]
    panoptic = model['panoptic_head']
    assert (panoptic['num_things_classes'], panoptic['num_stuff_classes']) == (3, 0)
    assert panoptic['loss_cls']['class_weight'] == [1.0, 1.0, 1.0, 0.1]
    edges = dict(decode_head=dict(num_classes=19), auxiliary_head=[dict(type='STDCHead', num_classes=2)])
    set_num_classes(edges, 3)
    assert edges['decode_head']['num_classes'] == 3 and edges['auxiliary_head'][0]['num_classes'] == 2
    with pytest.raises(UserError, match='no head'):
        set_num_classes(dict(backbone=dict(num_classes=5)), 3)
    with pytest.raises(UserError, match='out_channels` is 1 for 2 classes'):
        set_num_classes(dict(decode_head=dict(num_classes=2, out_channels=1)), 3)


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        (dict(type='RetinaNet', bbox_head=dict(type='RetinaHead')), False),
        (dict(type='MaskRCNN', roi_head=dict(mask_head=dict(type='FCNMaskHead'))), True),
        (dict(type='RTMDet', bbox_head=dict(type='RTMDetInsSepBNHead')), True),
        (dict(type='Mask2Former', panoptic_head=dict()), True),
    ],
)
def test_models_that_learn_outlines(model, expected):
    assert learns_masks(model) == expected


@pytest.mark.parametrize(
    ('config', 'wrapped'),
    [
        ('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 3),
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 1),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 1),
        ('mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', 1),
    ],
)
def test_stock_configs(config, wrapped, tmp_path):
    path = tmp_path / f'{Path(config).stem}.py'
    path.write_text(f"_base_ = '{config}'\n")
    folder = coco_folder(tmp_path / 'own') if config.startswith('mmdet') else labels_folder(tmp_path / 'own', (0, 1))
    cfg = configured(str(path), folder, tmp_path / 'work')
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == (4 if config.startswith('mmdet') else 3) * wrapped
    assert 'inputs' in dataset[0]
