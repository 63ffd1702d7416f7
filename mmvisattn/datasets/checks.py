"""What the toolboxes answer late or darkly, said before the first step, for any config."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.utils import is_list_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError, nearest
from ..registry import type_name
from .files import count, listed, sample
from .pictures import check_pictures
from .recipe import OTHER_CLASSES, dicts, processes


def check_runner(runner: Runner, *loaders: str) -> None:
    """Build the datasets of a run and see whether model, data and metrics fit one another.

    Args:
        runner (Runner): The runner, before its training or test.
        loaders (str): Names of its data loaders, such as ``'train_dataloader'``.

    Raises:
        UserError: If a dataset is empty or lacks what is read, its classes are not those of the heads, its pictures
            have other channels than the model takes, or BatchNorm would see a single value.
    """
    for name in loaders:
        dataset = build_dataset(runner, name)
        if name == 'train_dataloader':
            check_masks(dataset, runner.cfg)
        else:
            loop = runner.val_loop if name == 'val_dataloader' else runner.test_loop
            for metric in loop.evaluator.metrics:
                check_metric(metric)
    if isinstance(runner.model, nn.Module):
        check_model(runner, *loaders)
    else:
        runner.register_hook(CheckModelHook(loaders))


class CheckModelHook(Hook):
    """Does what :func:`check_model` does when a FlexibleRunner has built its model, before the first step.

    Args:
        loaders (Sequence[str]): Names of the data loaders.
    """

    priority = 'HIGHEST'

    def __init__(self, loaders: Sequence[str]) -> None:
        self.loaders = loaders

    def before_run(self, runner: Runner) -> None:
        """Look at the model."""
        check_model(runner, *self.loaders)


def check_model(runner: Runner, *loaders: str) -> None:
    """See whether the model fits the data.

    Args:
        runner (Runner): The runner, whose model is built.
        loaders (str): Names of its data loaders.

    Raises:
        UserError: See :func:`check_runner`.
    """
    for name in loaders:
        dataset = getattr(runner, name).dataset
        if not getattr(dataset, 'return_classes', False):  # otherwise the model reads their names
            check_classes(_unwrapped(runner), getattr(dataset, 'metainfo', {}).get('classes'), f'{name}.dataset')
        check_pictures(runner, dataset, f'{name}.dataset')
        if name == 'train_dataloader':
            check_batch_of_one(runner)


def _unwrapped(runner: Runner) -> nn.Module:
    """The model, whose parts have the names that they have in the config."""
    return cast(nn.Module, runner.model.module) if is_model_wrapper(runner.model) else runner.model


def build_dataset(runner: Runner, name: str) -> object:
    """The dataset of a data loader of the runner.

    Raises:
        UserError: If it has no image, or its annotations lack what is read.
    """
    try:
        return getattr(runner, name).dataset
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        told = explain(error, runner.cfg, name)
        if told is None:
            raise
        raise UserError(told) from error


def explain(error: Exception, cfg: dict, name: str) -> str | None:
    """What an error of a dataset of mmdet or mmseg means, or None where that is not known.

    Args:
        error (Exception): The error.
        cfg (dict): The config of the run.
        name (str): Name of the data loader.
    """
    # mmengine raises the error of a constructor anew, with its text in a longer one.
    text = str(error)
    inner = [
        node for node in dicts(cfg[name]) if 'pipeline' in node and 'dataset' not in node and 'datasets' not in node
    ]
    dataset = inner[-1] if inner else {}
    place = f'`{name}.dataset`'
    ann_file = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if 'need at least one array to concatenate' in text:
        return f'{place} has no image: {_why_empty(dataset, ann_file)}'
    for key in ('area', 'bbox', 'iscrowd', 'category_id', 'image_id', 'width', 'height', 'categories', 'images'):
        if isinstance(error, KeyError) and key == str(error.args[0]) or text.endswith(f"'{key}'"):
            return (
                f"{place}: a record of {ann_file} has no '{key}'; give the folder with --data, which mends what it can"
            )
    if 'are not unique' in text:
        return f'{place}: two annotations of one id in {ann_file}; give the folder with --data, which numbers them anew'
    return None


def _why_empty(dataset: dict, ann_file: Path) -> str:
    """Why a dataset has no image left."""
    if ann_file.suffix != '.json' or not ann_file.is_file():
        prefix = dataset.get('data_prefix') or {}
        folder = Path(dataset.get('data_root') or '', prefix.get('img_path') or prefix.get('img') or '')
        suffix = dataset.get('img_suffix', '.jpg')
        return f'no file with the suffix {suffix!r} in {folder}; set `img_suffix`, or give the folder with --data'
    content = json.loads(ann_file.read_text(encoding='utf-8-sig'))
    names = [category['name'] for category in content.get('categories', [])]
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes and not set(classes) & set(names):
        return (
            f'its classes ({listed(classes)}) match no category of {ann_file} ({listed(names)})'
            f'{nearest(str(classes[0]), names)}; set `metainfo.classes`, as a tuple, or give the folder with --data'
        )
    if not classes and (ours := _stock_classes(dataset)) and not set(ours) & set(names):
        return (
            f'no category of {ann_file} ({listed(names)}) is a class of {type_name(dataset.get("type"))} '
            f'({listed(ours)}); set `metainfo.classes`, as a tuple, or give the folder with --data'
        )
    return (
        f'all {len(content.get("images", []))} images of {ann_file} are filtered away, as empty or small; change '
        f'`filter_cfg`, which is {dict(dataset.get("filter_cfg") or {})}'
    )


def _stock_classes(dataset: dict) -> tuple[str, ...]:
    from mmengine.registry import DATASETS

    kind = dataset.get('type')
    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = kind if isinstance(kind, type) else registry.get(str(kind))
    return tuple(getattr(cls, 'METAINFO', {}).get('classes', ()))


def check_classes(model: nn.Module, classes: object, place: str) -> None:
    """Refuse heads that tell more or fewer classes apart than the data have.

    Args:
        model (nn.Module): The model.
        classes (object): Names of the classes of the data; anything else is not checked.
        place (str): Where they stand in the config.

    Raises:
        UserError: If the numbers differ.
    """
    if not is_list_of(list(classes) if isinstance(classes, tuple | list) else None, str):
        return
    number = len(list(classes))  # type: ignore[call-overload]
    for name, module in model.named_modules():
        own = getattr(module, 'num_classes', None)
        head = '_head' in name and 'rpn' not in name and type(module).__name__ not in OTHER_CLASSES
        if head and type(own) is int and own != number and not getattr(module, 'class_agnostic', False):
            raise UserError(
                f'`model.{name}` tells {count(own, "class", "classes")} apart, and `{place}` has {number} '
                f'({listed(list(classes))}); set `model.{name}.num_classes={number}`, or '  # type: ignore[call-overload]
                'give the folder with --data'
            )


def check_masks(dataset: object, cfg: dict) -> None:
    """Refuse objects without an outline where outlines are read.

    Raises:
        UserError: With their number.
    """
    steps = [step for step in dicts(cfg['train_dataloader']) if type_name(step.get('type')) == 'LoadAnnotations']
    if not any(step.get('with_mask') for step in steps) or not hasattr(dataset, 'get_data_info'):
        return
    looked_at = sample(range(len(dataset)))  # type: ignore[arg-type]
    instances = [one for i in looked_at for one in dataset.get_data_info(i).get('instances', [])]
    if without := sum('mask' not in one for one in instances):
        raise UserError(
            f'`train_dataloader.dataset`: {without} of {len(instances)} objects have no outline (segmentation), and '
            'LoadAnnotations reads them (with_mask=True); take a detector of boxes, or give the folder with --data, '
            'which makes them regions to ignore'
        )


def check_metric(metric: object) -> None:
    """Refuse records that COCO's metric cannot read, or reads as something else.

    Raises:
        UserError: With what they lack.
    """
    coco = getattr(metric, '_coco_api', None)
    if coco is None:
        return
    needed = ['area', 'iscrowd', 'bbox', *(['segmentation'] if 'segm' in getattr(metric, 'metrics', ()) else [])]
    for key in needed:
        if without := sum(key not in one for one in coco.anns.values()):
            raise UserError(
                f'{count(without, "annotation")} of {len(coco.anns)} that CocoMetric reads have no {key!r}; add it, or '
                'give the folder with --data'
            )
    if 0 in coco.anns:
        raise UserError(
            'an annotation has the id 0, and COCOeval takes a match with it for none; number them from 1, or give the '
            'folder with --data'
        )


def check_batch_of_one(runner: Runner) -> None:
    """Refuse a batch of one image where BatchNorm follows pooling to a single pixel; warn where it follows a map.

    Raises:
        UserError: With the size to set.
    """
    loader = runner.train_dataloader
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
    images = len(loader.dataset)
    last = images % (size * processes()) if size else 0
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop) and not getattr(loader, 'drop_last', False)
    if size != 1 and not (by_epoch and math.ceil(last / processes()) == 1):
        return
    model = _unwrapped(runner).train()
    text = (
        f'batches of {size}'
        if size == 1
        else f'{images} images in batches of {size}, which leaves a last one of one image'
    )
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        parts = list(module.modules())
        pooled = any(isinstance(part, nn.AdaptiveAvgPool2d) and part.output_size in (1, (1, 1)) for part in parts)
        if pooled and any(isinstance(part, _BatchNorm) and part.training for part in parts):
            raise UserError(
                f'{text}: BatchNorm in `{name}` sees one value a channel and cannot be trained; set '
                '`train_dataloader.batch_size` to at least 2 (`drop_last=True` for the last one)'
            )
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training]
    if norms and size == 1:
        runner.logger.warning(
            f'{text}: the statistics of BatchNorm ({listed(norms, 2)}) are those of a single image; a larger '
            '`train_dataloader.batch_size` is better'
        )
