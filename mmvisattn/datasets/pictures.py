"""Whether pictures are of the channels and bits that a model takes, seen on the first of a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..errors import UserError
from ..registry import type_name
from .files import count, read_head

CORNER = 64  # pixels a side of what is put through the preprocessor


def check_pictures(runner: Runner, dataset: Any, place: str) -> None:
    """Refuse pictures whose channels are not those of the model, and warn of those with more than 8 bits a channel.

    Args:
        runner (Runner): The runner.
        dataset (Any): The dataset; what is none of the toolboxes is not checked.
        place (str): Where it stands in the config.

    Raises:
        UserError: With the channels of the first picture, and what to set.
    """
    while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    reader = next((step for step in steps if type_name(type(step)) == 'LoadImageFromFile'), None)
    if reader is None or not hasattr(dataset, 'get_data_info') or not len(dataset):
        return
    info = dataset.get_data_info(0)
    path = info.get('img_path')
    if path is None or '://' in path or not Path(path).is_file():
        return
    try:
        picture = reader(dict(info))['img']
    except Exception:  # readers say it in many ways; a damaged picture is told when its turn comes
        return
    check_bits(runner, picture, path, place)
    check_channels(runner.model, picture, path, place)


def check_bits(runner: Runner, picture: np.ndarray, path: str, place: str) -> None:
    """Warn of values that the mean of the model is not for, and of bits that are not read."""
    head = read_head(Path(path))
    if picture.dtype != np.uint8:
        runner.logger.warning(
            f'`{place}`: {path} is read as {picture.dtype} with values up to {picture.max()}; `mean` and `std` of '
            '`model.data_preprocessor` have to be for such values'
        )
    elif head and head.deep:
        runner.logger.warning(
            f'`{place}`: {path} has more than 8 bits a channel, of which the upper 8 are read; it is nearly black '
            'where it uses the lower ones'
        )


def check_channels(model: Any, picture: np.ndarray, path: str, place: str) -> None:
    """Put a corner of a picture through the preprocessor of a model, and see what would come to the backbone.

    Args:
        model (Any): The model.
        picture (np.ndarray): The picture as read, (H, W) or (H, W, C).
        path (str): Its file.
        place (str): Where its dataset stands in the config.

    Raises:
        UserError: If the preprocessor does not take it, or the backbone would not take what comes out.
    """
    model = getattr(model, 'module', model)  # of DistributedDataParallel, or of test-time augmentation
    corner = np.atleast_3d(picture)[:CORNER, :CORNER]
    given = f'`{place}`: pictures of {count(corner.shape[2], "channel", "channels")}, such as {path}'
    image = torch.from_numpy(np.ascontiguousarray(corner.transpose(2, 0, 1)).astype(np.float32))
    sample = BaseDataElement(metainfo=dict(img_shape=image.shape[1:], ori_shape=image.shape[1:]))
    preprocessor = model.data_preprocessor
    try:
        inputs = preprocessor(dict(inputs=[image], data_samples=[sample]), False)['inputs']
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f'{given}, and `mean` of `model.data_preprocessor` has {preprocessor.mean.numel()} values; set `mean` and '
            "`std` (mmdet takes 1 or 3), or `color_type='color'` of LoadImageFromFile"
        ) from error
    # Backbones of ours say what they take.
    taken = getattr(getattr(model, 'backbone', None), 'in_channels', None)
    if isinstance(taken, int) and inputs.shape[1] != taken:
        raise UserError(
            f'{given}, of which {inputs.shape[1]} come out of `model.data_preprocessor`, and the backbone takes '
            f'{taken}; set `model.backbone.in_channels`, `color_type` of LoadImageFromFile, or of the preprocessor '
            '`mean`, `std` and `bgr_to_rgb=False`'
        )
