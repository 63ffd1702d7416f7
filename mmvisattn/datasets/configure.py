"""Write the data of a folder into a config: datasets, classes, metrics, heads, recipe."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoint.settings import read_settings
from ..errors import UserError
from ..registry import type_name
from . import recipe
from .description import DetectionData, SegmentationData, distinct_palette
from .files import count, listed
from .reading import VAL_SHARE, read_detection, read_segmentation
from .recipe import Choices, dicts
from .tables import class_weights, detection_table, segmentation_table
from .write import write_coco, write_labels

KEPT = ('pipeline', 'filter_cfg', 'backend_args', 'indices', 'max_refetch', 'serialize_data', 'lazy_init')
MASK_MODELS = (
    'SOLO',
    'SOLOv2',
    'DecoupledSOLO',
    'MaskFormer',
    'Mask2Former',
    'CondInst',
    'BoxInst',
    'YOLACT',
    'QueryInst',
)
SETTINGS = ('model', 'test_dataloader', 'tta_pipeline')
LOADERS = {'train': 'train_dataloader', 'val': 'val_dataloader', 'test': 'test_dataloader'}


@dataclass
class Trained:
    """What a checkpoint of mmengine tells of its training.

    Args:
        classes (list[str] | None): Names of the classes.
        settings (dict): ``model``, ``test_dataloader`` and ``tta_pipeline`` of the config, as far as they are read.
    """

    classes: list[str] | None
    settings: dict

    @classmethod
    def of(cls, checkpoint: str) -> 'Trained':
        """Read a checkpoint's file."""
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
        meta = (content.get('meta') if isinstance(content, dict) else None) or {}
        # The upper case is that of the toolboxes' earlier versions.
        names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
        text = meta.get('cfg')
        settings = read_settings(text, SETTINGS) if isinstance(text, str) else {}
        return cls([str(name) for name in names] if isinstance(names, tuple | list) else None, settings)

    def hand_over(self, cfg: Config, choices: Choices) -> None:
        """Let a config of a test have the sizes and anchors of the training."""
        if 'model' not in self.settings:
            choices.tell(
                'the checkpoint does not say how it was trained: image scale and anchors are those of the config'
            )
        recipe.follow_training(cfg, self.settings, choices)


def use_folder(
    cfg: Config,
    folder: str,
    cfg_options: dict | None = None,
    *,
    zero_label: str | None = None,
    val_share: float = VAL_SHARE,
    trained: 'Trained | None' = None,
) -> DetectionData | SegmentationData:
    """Let a config train, validate and test on a folder of the user's, and print what was found and chosen.

    Files that are made for it go into ``data`` below ``cfg.work_dir``.

    Args:
        cfg (Config): The config of a detector or segmentor, changed in place.
        folder (str): The folder.
        cfg_options (dict, optional): What the user has set, which is left as it is.
        zero_label (str, optional): What label 0 is, ``class`` or ``void``. Defaults to what the data say.
        val_share (float): Share for validation where the folder has no split. Defaults to 0.2.
        trained (Trained, optional): The model to be tested, whose classes, sizes and anchors are taken. Defaults to
            none: they follow from the data, as the recipe does.

    Returns:
        DetectionData | SegmentationData: What was found.

    Raises:
        UserError: If the folder does not hold what the config needs.
    """
    choices = Choices(cfg_options)
    cache = Path(cfg.work_dir, 'data').resolve()
    classes, training = trained.classes if trained else None, trained is None
    if cfg.default_scope == 'mmseg':
        labels = read_segmentation(folder, zero_label, val_share, classes)
        _configure_segmentation(cfg, labels, cache, choices, training)
        data: DetectionData | SegmentationData = labels
    else:
        if zero_label:
            raise UserError('--zero-label is for labels of pixels, and this config is of a detector; leave it out')
        with_masks = learns_masks(cfg.model)
        objects = read_detection(folder, with_masks, val_share, classes)
        _configure_detection(cfg, objects, cache, choices, with_masks, training)
        data = objects
    if trained:
        trained.hand_over(cfg, choices)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    if int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0) == 0:
        print_report(data, choices)
    return data


def print_report(data: DetectionData | SegmentationData, choices: Choices) -> None:
    """Print what was found and chosen, a line each, and the table of the classes."""
    detection = isinstance(data, DetectionData)
    print(
        f'data: {data.root}: {data.format} {"annotations" if detection else "labels"}, '
        + count(len(data.classes), 'class', 'classes')
    )
    for note in [*data.notes, *choices.lines]:
        print(f'data: {note}')
    print(detection_table(data) if isinstance(data, DetectionData) else segmentation_table(data))


# Detection


def learns_masks(model: dict) -> bool:
    """Whether a detector learns outlines."""
    if type_name(model.get('type')) in MASK_MODELS:
        return True
    return any(node.get('mask_head') or type_name(node.get('type')).startswith('RTMDetIns') for node in dicts(model))


def _configure_detection(
    cfg: Config, data: DetectionData, cache: Path, choices: Choices, with_masks: bool, training: bool
) -> None:
    if with_masks and not data.has_masks:
        raise UserError(
            f'{cfg.filename} learns outlines, and the objects in {data.root} have boxes alone; take a config that '
            f'needs none: {_box_configs(cfg)}'
        )
    steps = [step for pipeline in recipe.pipelines(cfg) for step in dicts(pipeline)]
    if any(step.get('with_seg') or type_name(step.get('type')) == 'LoadPanopticAnnotations' for step in steps):
        raise UserError(f'{cfg.filename} also learns labels of pixels (with_seg), which --data does not give it')
    files = write_coco(data, cache)
    metainfo = dict(classes=tuple(data.classes), palette=distinct_palette(len(data.classes)))
    for name, loader in LOADERS.items():
        split = _split_for(name, data.splits)
        if cfg.get(loader) is None or split is None:
            continue
        own = dict(
            type='CocoDataset',
            data_root=str(data.splits[split].image_root),
            ann_file=str(files[split]),
            data_prefix=dict(img=''),
            metainfo=metainfo,
        )
        _replace_dataset(cfg, loader, own)
        key = f'{name}_evaluator'
        if name != 'train' and cfg.get(key) is not None:
            cfg[key] = _coco_metric(cfg[key], str(files[split]), with_masks)
    for pipeline in recipe.pipelines(cfg):
        for step in dicts(pipeline):
            if type_name(step.get('type')) == 'LoadAnnotations' and step.get('with_mask') and not with_masks:
                step['with_mask'] = False
    _read_stored_orientation(cfg, data.ignore_orientation)
    set_num_classes(cfg.model, len(data.classes), choices)
    if not training:
        return
    train = data.splits.get('train')
    if train is None:
        raise UserError(f'--data {data.root}: nothing to train on; there is {listed(data.splits)}')
    boxes = [one for one in train.annotations if not one['iscrowd']]
    if not boxes:
        raise UserError(f'--data {data.root}: no objects in the images of training ({len(train.images)} images)')
    full = {one['image_id'] for one in train.annotations}
    heads = [(image['width'], image['height'], image['id'] in full) for image in train.images]
    images = recipe.check_filter(cfg, heads, choices)
    times = recipe.set_image_scale(cfg, [head[:2] for head in heads], choices)
    recipe.set_anchors(cfg, np.array([one['bbox'][2:] for one in boxes], float), times, choices)
    recipe.set_schedule(cfg, images * _repeats(cfg), choices)
    recipe.set_learning_rate(cfg, choices)
    most = max(Counter(one['image_id'] for one in boxes).values())
    limits = [node['max_per_img'] for node in dicts(cfg.model.get('test_cfg')) if node.get('max_per_img')]
    if limits and most > min(limits):
        choices.tell(
            f'an image has {most} objects, and the model gives {min(limits)} at most (max_per_img in model.test_cfg); '
            'COCO counts the best 100 in any case'
        )


def _box_configs(cfg: Config) -> str:
    """Configs beside this one whose models learn boxes alone."""
    folder = Path(cfg.filename or '.').parent
    names = [path for path in sorted(folder.glob('*.py')) if 'coco' in path.stem and 'mask' not in path.stem]
    return listed(names) if names else 'one without a mask head, such as of RetinaNet, Faster R-CNN, ATSS or DINO'


def _coco_metric(old: dict | list[dict], ann_file: str, with_masks: bool) -> dict:
    """The metric of COCO, with the options that the config's own had."""
    olds = old if isinstance(old, list) else [old]
    kept = next((dict(one) for one in olds if type_name(one.get('type')) == 'CocoMetric'), None)
    metric = kept or dict(type='CocoMetric', metric=['bbox', 'segm'] if with_masks else 'bbox')
    if not with_masks and 'segm' in metric.get('metric', 'bbox'):
        metric['metric'] = 'bbox'
    return dict(metric, ann_file=ann_file, format_only=False, classwise=True)


# Segmentation


def _configure_segmentation(cfg: Config, data: SegmentationData, cache: Path, choices: Choices, training: bool) -> None:
    folders = write_labels(data, cache)
    metainfo = dict(classes=tuple(data.classes), palette=[list(colour) for colour in data.palette])
    for name, loader in LOADERS.items():
        split = _split_for(name, data.pairs)
        if cfg.get(loader) is None or split is None:
            continue
        own = dict(
            type='BaseSegDataset',
            data_root='',
            img_suffix=folders[split].suffix,
            seg_map_suffix='.png',
            data_prefix=dict(img_path=str(folders[split].images), seg_map_path=str(folders[split].labels)),
            metainfo=metainfo,
            reduce_zero_label=data.reduce_zero_label,
        )
        _replace_dataset(cfg, loader, own)
        key = f'{name}_evaluator'
        if name != 'train' and cfg.get(key) is not None:
            olds = cfg[key] if isinstance(cfg[key], list) else [cfg[key]]
            kept = next((dict(one) for one in olds if type_name(one.get('type')) == 'IoUMetric'), None)
            cfg[key] = kept or dict(type='IoUMetric', iou_metrics=['mIoU'])
    for pipeline in recipe.pipelines(cfg):
        for step in dicts(pipeline):
            if type_name(step.get('type')) == 'LoadAnnotations':
                step.pop('reduce_zero_label', None)  # the dataset says it
    choices.tell(f'reduce_zero_label={data.reduce_zero_label}' + (', labels written anew' if data.convert else ''))
    _read_stored_orientation(cfg, data.ignore_orientation)
    set_num_classes(cfg.model, len(data.classes), choices)
    if not training:
        return
    if 'train' not in data.pairs:
        raise UserError(f'--data {data.root}: nothing to train on; there is {listed(data.pairs)}')
    recipe.set_image_scale(cfg, data.sizes, choices)
    recipe.set_schedule(cfg, len(data.pairs['train']) * _repeats(cfg), choices)
    recipe.set_learning_rate(cfg, choices)
    weights = ', '.join(f'{weight:.2f}' for weight in class_weights(data.pixels))
    if len(data.classes) <= 20:
        choices.tell(
            f'weights of the classes, not used unless set: model.decode_head.loss_decode.class_weight="[{weights}]"'
        )


# Both


def _split_for(name: str, splits: dict) -> str | None:
    """The split that a data loader reads; test and val stand in for one another."""
    others = {'train': ['train'], 'val': ['val', 'test'], 'test': ['test', 'val', 'all']}[name]
    return next((other for other in others if other in splits), None)


def _replace_dataset(cfg: Config, loader: str, own: dict) -> None:
    """Put a dataset in the place of the innermost one, with its pipeline and below its wrappers."""

    def replaced(node: ConfigDict) -> ConfigDict:
        if 'dataset' in node:
            node.dataset = replaced(node.dataset)
            return node
        if 'datasets' in node:  # several of one kind, as VOC's years
            return replaced(node.datasets[0])
        kept = {key: node[key] for key in KEPT if key in node}
        if loader != 'train_dataloader':
            kept['test_mode'] = True
        return ConfigDict(**own, **kept)

    cfg[loader].dataset = replaced(cfg[loader].dataset)


def _repeats(cfg: Config) -> int:
    """How often an epoch shows each image."""
    times = 1
    for node in dicts(cfg.train_dataloader.dataset):
        times *= node.get('times', 1) if type_name(node.get('type')) == 'RepeatDataset' else 1
    return times


def _read_stored_orientation(cfg: Config, ignore: bool) -> None:
    """Let images be read without EXIF's rotation, where the annotations are of those."""
    for pipeline in recipe.pipelines(cfg) if ignore else ():
        for step in dicts(pipeline):
            if type_name(step.get('type')) == 'LoadImageFromFile':
                step['color_type'] = 'color_ignore_orientation'


def set_num_classes(model: dict, number: int, choices: Choices | None = None) -> None:
    """Set the number of classes in every head, nested ones included; a region proposal network keeps its one.

    Args:
        model (dict): The model's config, changed in place.
        number (int): The number of classes.
        choices (Choices, optional): Gets a line.

    Raises:
        UserError: If no head has a number of classes, or one works otherwise.
    """
    heads: list[str] = []

    def visit(node: object, path: str) -> None:
        if isinstance(node, list | tuple):
            for i, child in enumerate(node):
                visit(child, f'{path}.{i}')
            return
        if not isinstance(node, dict):
            return
        old = node.get('num_classes', node.get('num_things_classes'))
        kind = type_name(node.get('type'))
        if old is not None and 'RPN' not in kind and kind not in recipe.OTHER_CLASSES:
            if node.get('out_channels') == 1 != old:
                raise UserError(
                    f'`{path}.out_channels` is 1 for {old} classes: a head of this kind knows two classes alone; take '
                    'it out of the config'
                )
            for part in dicts(node):
                if isinstance(weights := part.get('class_weight'), list | tuple):
                    # The last one is of "no object" where there is one more than classes.
                    part['class_weight'] = [1.0] * number + [weights[-1]] if len(weights) != old else None
            if 'num_things_classes' in node:
                node.update(num_things_classes=number, num_stuff_classes=0)
            if 'num_classes' in node:
                node['num_classes'] = number
            if node.get('out_channels') == old:  # of some heads it is the width of the features
                node['out_channels'] = number
            heads.append(path)
        for key, child in node.items():
            if key not in ('backbone', 'rpn_head', 'data_preprocessor', 'neck'):
                visit(child, f'{path}.{key}')

    visit(model, 'model')
    if not heads:
        raise UserError('no head in `model` has `num_classes`; write it into the config, so that it can be set')
    if choices:
        choices.tell(f'{count(number, "class", "classes")} in {listed(heads, 8)}')
