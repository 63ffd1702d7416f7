"""``timm://NAME`` as the address of a checkpoint: the pretrained weights of timm's model of that name."""

import logging

import timm
import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import UserError, nearest

PREFIX = 'timm://'


@CheckpointLoader.register_scheme(prefixes=PREFIX)
def load_from_timm(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Load the weights of a pretrained model of timm, which downloads them once and caches them.

    A warning says so where the images of pretraining were normalised otherwise than OpenMMLab's configs do.

    Args:
        filename (str): ``timm://`` and a name of :func:`timm.list_pretrained`, with or without its tag, such as
            ``timm://deit_base_patch16_224`` or ``timm://deit_base_patch16_224.fb_in1k``.
        map_location (str | torch.device, optional): Device to put the weights on. Defaults to the CPU.

    Returns:
        dict: The weights under ``state_dict``.

    Raises:
        UserError: If timm has no weights of this name, or cannot get them.
    """
    name = filename.removeprefix(PREFIX)
    if not timm.is_model_pretrained(name):
        raise UserError(
            f'timm {timm.__version__} has no weights for {name!r}{nearest(name, timm.list_models(pretrained=True))}, '
            f'asked for by {filename!r}; `timm.list_pretrained()` lists the models that have'
        )
    try:
        model = timm.create_model(name, pretrained=True)
    # What fails where the network is down or the file damaged depends on the client that timm goes through.
    except Exception as error:
        raise UserError(
            f'timm could not get the weights of {name!r} ({type(error).__name__}: {_first_line(error)}); where there '
            f'is no network, run `timm.create_model({name!r}, pretrained=True)` on a machine that has one and copy its '
            'cache (HF_HOME), or set `checkpoint` to the path of a file'
        ) from error
    _tell_normalisation(name)
    return dict(state_dict={key: value.to(map_location or 'cpu') for key, value in model.state_dict().items()})


def _tell_normalisation(name: str) -> None:
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if pretrained_cfg is None:
        return
    given = tuple(pretrained_cfg.mean), tuple(pretrained_cfg.std)
    if given == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        return
    mean, std = ([round(255 * value, 3) for value in values] for values in given)
    print_log(
        f'{name} was pretrained on images normalised with mean {mean} and std {std} (RGB, of 255), not with those of '
        f'ImageNet; set `model.data_preprocessor.mean={mean}` and `model.data_preprocessor.std={std}`',
        logger='current',
        level=logging.WARNING,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [''])[0]
