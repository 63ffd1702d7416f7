"""What follows from the data in a recipe: image scale, anchors, length of the training, learning rate; each is told."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..errors import UserError
from ..registry import type_name
from .files import count

MOST_ENLARGED = 2.0  # times, to which the scale of a config may enlarge the median image
LEAST_ITERS = 2000
MOST_EPOCHS = 300
ENOUGH_EPOCHS = 200  # of a training that is counted in iterations
ENDLESS = 10**8  # what mmengine's schedulers take for no end
DIVISOR = 32  # of image sizes: the stride of the last stage
# Heads whose classes are not those of the objects: edges and their absence, stuff behind the objects.
OTHER_CLASSES = ('STDCHead', 'FusedSemanticHead', 'PanopticFPNHead')
SIZE_KEYS = ('scale', 'scales', 'crop_size', 'img_scale', 'size', 'stride')


class Choices:
    """What was chosen, and what the user has set and so is left alone.

    Args:
        given (dict, optional): ``--cfg-options``.
    """

    def __init__(self, given: dict | None = None) -> None:
        self.given = given or {}
        self.lines: list[str] = []

    def free(self, *keys: str) -> bool:
        """Whether the user has set none of these dotted keys, nor what is above or below one; tells of one that is."""
        for key in keys:
            for option in self.given:
                if f'{option}.'.startswith(f'{key}.') or f'{key}.'.startswith(f'{option}.'):
                    self.lines.append(f'{key}: left as --cfg-options {option} says')
                    return False
        return True

    def tell(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)


def dicts(node: object) -> Iterator[dict]:
    """All dicts in a config, from the outside in."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from dicts(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from dicts(child)


def pipelines(cfg: Config, *loaders: str) -> Iterator[list]:
    """All pipelines of the datasets, also of those inside wrappers."""
    for loader in loaders or ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for node in dicts(cfg.get(loader)):
            if isinstance(node.get('pipeline'), list):
                yield node['pipeline']
    if not loaders and 'tta_pipeline' in cfg:
        yield cfg.tta_pipeline


def processes() -> int:
    """How many processes the run has, as its launcher says."""
    return int(os.environ.get('WORLD_SIZE') or os.environ.get('SLURM_NTASKS') or 1)


def resized(cfg: Config) -> tuple[int, int] | None:
    """The scale that the test resizes to, long and short side, where it does."""
    for pipeline in pipelines(cfg, 'test_dataloader'):
        for step in dicts(pipeline):
            if type_name(step.get('type')) == 'Resize' and isinstance(step.get('scale'), tuple | list):
                long, short = max(step['scale']), min(step['scale'])
                return int(long), int(short)
    return None


def enlargement(scale: tuple[int, int], size: tuple[int, int]) -> float:
    """How many times an image is enlarged to fit a scale of long and short side, its aspect ratio kept."""
    return min(scale[0] / max(size), scale[1] / min(size))


def set_image_scale(cfg: Config, sizes: list[tuple[int, int]], choices: Choices) -> float:
    """Shrink the config's scales and crops where they would enlarge the images too much.

    Args:
        cfg (Config): The config, changed in place.
        sizes (list[tuple[int, int]]): Width and height of the images.
        choices (Choices): Gets a line.

    Returns:
        float: How many times the median image is enlarged at last.
    """
    width, height = (int(side) for side in np.median(np.array(sizes), axis=0))
    scale = resized(cfg)
    if scale is None:
        choices.tell(f'image scale: the config resizes nothing; the images have {width}×{height} pixels in the median')
        return 1.0
    times = enlargement(scale, (width, height))
    text = f'images of {width}×{height} pixels in the median'
    free = choices.free('train_dataloader.dataset.pipeline', 'test_dataloader.dataset.pipeline')
    if times <= MOST_ENLARGED or not free:
        choices.tell(f'image scale {scale[0]}×{scale[1]}, as in the config: {text} become {times:.2g} times as large')
        return times
    factor = MOST_ENLARGED / times
    nodes = [*pipelines(cfg), cfg.model.get('data_preprocessor'), cfg.model.get('test_cfg')]
    done: set[int] = set()
    for node in dicts(nodes):
        if id(node) in done:
            continue
        done.add(id(node))
        for key in SIZE_KEYS:
            if key in node and (new := _scaled(node[key], factor)) is not None:
                node[key] = new
    if isinstance(cfg.get('crop_size'), tuple | list):
        cfg.crop_size = _scaled(cfg.crop_size, factor)
    new_scale = resized(cfg) or scale
    choices.tell(
        f'image scale {new_scale[0]}×{new_scale[1]} in place of {scale[0]}×{scale[1]}, crops likewise: {text}, which '
        f'would become {times:.2g} times as large (the `pipeline` of each `dataset`)'
    )
    return enlargement(new_scale, (width, height))


def _scaled(value: Any, factor: float) -> Any:
    """Sizes in pixels times a factor, in steps of the stride; None for what is no size in pixels."""
    if isinstance(value, tuple | list) and value:
        if all(isinstance(side, int) and side > 1 for side in value):
            return tuple(max(round(side * factor / DIVISOR), 2) * DIVISOR for side in value)
        inner = [_scaled(one, factor) for one in value]
        return None if None in inner else inner
    return None


def set_anchors(cfg: Config, boxes: np.ndarray, times: float, choices: Choices) -> None:
    """Halve the anchors where many objects are smaller than half the smallest.

    Args:
        cfg (Config): The config, changed in place.
        boxes (np.ndarray): Width and height of the objects of training, (N, 2), in pixels.
        times (float): How many times the images are enlarged.
        choices (Choices): Gets lines.
    """
    if not len(boxes):
        return
    low, middle, high = np.percentile(np.sqrt(boxes.prod(1)) * times, (5, 50, 95))
    text = f'objects of {low:.0f} to {high:.0f} pixels at the scale of the network (5 to 95 %)'
    generators = [(path, node) for path, node in _anchor_generators(cfg.model, 'model')]
    if not generators:
        choices.tell(f'anchors: the model has none; {text}')
    for path, node in generators:
        key = 'octave_base_scale' if node.get('octave_base_scale') else 'scales'
        scales = node.get(key)
        least = min(scales) if isinstance(scales, list | tuple) else scales
        if not least or not node.get('strides'):
            choices.tell(f'{path}: left as it is; {text}')
            continue
        stride = min(s if isinstance(s, int | float) else min(s) for s in node['strides'])
        smallest = stride * least
        halvings = min(max(math.ceil(math.log2(smallest / (2 * max(low, 1)))), 0), 2)
        if halvings and choices.free(path):
            new = [s / 2**halvings for s in scales] if isinstance(scales, list | tuple) else scales / 2**halvings
            node[key] = new
            change = f'{key} {new} in place of {scales}'
            choices.tell(f'{path}: {change}, so the smallest anchor has {smallest / 2**halvings:g} pixels; {text}')
        else:
            choices.tell(f'{path}: as in the config, the smallest has {smallest:g} pixels; {text}')
    if generators and (long := float((boxes.max(1) > 3 * boxes.min(1)).mean())) > 0.1:
        choices.tell(
            f'{long:.0%} of the boxes are more than 3:1; `ratios=[0.25, 0.5, 1, 2, 4]` of the anchors may help'
        )
    if middle < 16:
        choices.tell(
            f'half of the objects have less than {middle:.0f} pixels there: a larger scale, or cut images, help'
        )


def _anchor_generators(node: object, path: str) -> Iterator[tuple[str, dict]]:
    if isinstance(node, dict):
        for key, child in node.items():
            if key == 'anchor_generator' and type_name(child.get('type')) in ('AnchorGenerator', 'SSDAnchorGenerator'):
                yield f'{path}.{key}', child
            else:
                yield from _anchor_generators(child, f'{path}.{key}')
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _anchor_generators(child, f'{path}.{i}')


def follow_training(cfg: Config, trained: dict, choices: Choices) -> None:
    """Take over the sizes and anchors that a training has chosen: with others the model would find other things.

    Args:
        cfg (Config): The config of a test, changed in place.
        trained (dict): ``model``, ``test_dataloader`` and ``tta_pipeline`` of the training's config.
        choices (Choices): Gets a line for each that differs.
    """

    def visit(own: Any, theirs: Any, path: str) -> None:
        if isinstance(own, dict) and isinstance(theirs, dict):
            for key in own.keys() & theirs.keys():
                if key in (*SIZE_KEYS, 'octave_base_scale') and _plain(own[key]) != _plain(theirs[key]):
                    choices.tell(
                        f'{path}.{key} {theirs[key]} in place of {own[key]}, as in the training of the checkpoint'
                    )
                    own[key] = theirs[key]
                else:
                    visit(own[key], theirs[key], f'{path}.{key}')
        elif isinstance(own, list | tuple) and isinstance(theirs, list | tuple) and len(own) == len(theirs):
            for i, (mine, other) in enumerate(zip(own, theirs)):
                visit(mine, other, f'{path}.{i}')

    for name in ('model', 'test_dataloader', 'tta_pipeline'):
        visit(cfg.get(name), trained.get(name), name)


def _plain(value: Any) -> Any:
    """Tuples and lists alike."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def set_schedule(cfg: Config, images: int, choices: Choices) -> None:
    """The length of the training by the number of images, with the schedules of rates in proportion.

    Args:
        cfg (Config): The config, changed in place.
        images (int): Images of training, repeats included.
        choices (Choices): Gets a line.
    """
    train = cfg.get('train_cfg') or {}
    by_epoch = 'max_epochs' in train
    key = 'max_epochs' if by_epoch else 'max_iters'
    if key not in train:
        return
    batch = cfg.train_dataloader.get('batch_size', 1) * processes()
    an_epoch = max(math.ceil(images / batch), 1)
    old = train[key]
    free = choices.free(f'train_cfg.{key}')
    if not free:
        new = old
    elif by_epoch:
        new = max(old, min(math.ceil(LEAST_ITERS / an_epoch), MOST_EPOCHS))
    else:
        new = min(old, max(LEAST_ITERS, ENOUGH_EPOCHS * an_epoch))
    iters = new * an_epoch if by_epoch else new
    why = f'{count(images, "image")} by {batch} are {count(an_epoch, "iteration")} an epoch'
    change = f'in place of {old}' if new != old else 'as in the config'
    unit = 'epoch' if by_epoch else 'iteration'
    choices.tell(f'{count(new, unit)} {change}: {why}, {iters} iterations in all (train_cfg.{key})')
    if new != old or not free:
        train[key] = new
        train.pop('dynamic_intervals', None)
        interval = max(round(new / 12), 1) if by_epoch else max(new // 10, 1)
        if choices.free('train_cfg.val_interval'):
            train['val_interval'] = interval
        checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
        if checkpoint and choices.free('default_hooks.checkpoint'):
            checkpoint['interval'] = interval
    if choices.free('param_scheduler'):
        _scale_schedulers(cfg, new, by_epoch)
        _cap_warmup(cfg, iters, by_epoch)
    logger = cfg.get('default_hooks', {}).get('logger')
    if logger and choices.free('default_hooks.logger'):
        logger['interval'] = min(logger.get('interval', 50), max(an_epoch, 1))


def _schedulers(cfg: Config) -> list[dict]:
    schedulers = cfg.get('param_scheduler') or []
    return schedulers if isinstance(schedulers, list) else [schedulers]


def _scale_schedulers(cfg: Config, length: int, by_epoch: bool) -> None:
    """Stretch what is counted in the unit of the training, so that the last schedule ends with it."""
    schedulers = [one for one in _schedulers(cfg) if one.get('by_epoch', True) == by_epoch]
    ends = [one['end'] for one in schedulers if isinstance(one.get('end'), int) and one['end'] < ENDLESS]
    if not ends:
        return
    factor = length / max(ends)
    for scheduler in schedulers:
        for key in ('begin', 'end', 'T_max', 'step_size'):
            if isinstance(scheduler.get(key), int) and scheduler[key] < ENDLESS:
                scheduler[key] = max(round(scheduler[key] * factor), 0 if key == 'begin' else 1)
        if 'milestones' in scheduler:
            scheduler['milestones'] = [max(round(m * factor), 1) for m in scheduler['milestones']]
    for hook in cfg.get('custom_hooks') or []:
        if isinstance(hook.get('switch_epoch'), int):
            hook['switch_epoch'] = round(hook['switch_epoch'] * factor)


def _cap_warmup(cfg: Config, iters: int, by_epoch: bool) -> None:
    """Let a warm-up that is counted in iterations take a tenth of an epoch-wise training at most."""
    for scheduler in _schedulers(cfg):
        most = max(iters // 10, 1)
        if by_epoch and not scheduler.get('by_epoch', True) and scheduler.get('end', 0) > most:
            scheduler['end'] = most


def set_learning_rate(cfg: Config, choices: Choices) -> None:
    """Scale the learning rate by the batch, where the config says for which batch it is.

    Args:
        cfg (Config): The config, changed in place.
        choices (Choices): Gets a line.
    """
    rate = (cfg.get('optim_wrapper') or {}).get('optimizer', {}).get('lr')
    batch = cfg.train_dataloader.get('batch_size', 1) * processes()
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if base is None and (match := re.search(r'_(\d+)xb(\d+)', Path(cfg.filename or '').stem)):
        base = int(match[1]) * int(match[2])
    if base is None or rate is None:
        choices.tell(
            f'learning rate {rate}, as in the config: it does not say for which batch (auto_scale_lr.base_batch_size)'
        )
    elif choices.free('auto_scale_lr', 'optim_wrapper.optimizer.lr'):
        cfg.auto_scale_lr = dict(enable=True, base_batch_size=base)
        choices.tell(
            f'learning rate {rate:g} × {batch}/{base} = {rate * batch / base:.3g}: batches of {batch}, and the config '
            f'is for {base} (auto_scale_lr.enable)'
        )


def check_filter(cfg: Config, heads: list[tuple[int, int, bool]], choices: Choices) -> int:
    """How many images the dataset of the training keeps.

    Args:
        cfg (Config): The config.
        heads (list[tuple[int, int, bool]]): Width, height, and whether it has objects, of each image.
        choices (Choices): Gets a line on those that it leaves out.

    Raises:
        UserError: If it keeps none.
    """
    filter_cfg: dict = next((n['filter_cfg'] for n in dicts(cfg.train_dataloader.dataset) if n.get('filter_cfg')), {})
    least = filter_cfg.get('min_size', 0)
    empty = sum(not full for *_, full in heads) if filter_cfg.get('filter_empty_gt') else 0
    kept = sum(min(w, h) >= least and (full or not filter_cfg.get('filter_empty_gt')) for w, h, full in heads)
    where = '`train_dataloader.dataset.filter_cfg`'
    if not kept:
        small = sum(min(width, height) < least for width, height, _ in heads)
        raise UserError(
            f'all {len(heads)} images of training are filtered away: {empty} have no objects (filter_empty_gt), '
            f'{small} have a side below {least} pixels (min_size); change {where}'
        )
    if kept < len(heads):
        choices.tell(f'{len(heads) - kept} of {len(heads)} images are left out of training, {empty} as empty ({where})')
    return kept
