"""Compile the parts of a model in which its time goes."""

import inspect
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError, nearest
from ..registry import HOOKS
from .backbones import find_backbones


@HOOKS.register_module()
class CompileHook(Hook):
    """Run backbone and neck through ``torch.compile``, in training, validation and test.

    mmengine's own ``compile=True`` takes the step of training as a whole, with the optimizer and the heads, whose
    graphs break wherever they count objects or pixels, and nothing of validation and test. Names of weights stay as
    they are.

    Args:
        **options (Any): Arguments of ``torch.compile``, such as ``mode='reduce-overhead'``. By default the first images
            of another size make a graph that leaves open what differed; after a few of them no more are made.

    Raises:
        UserError: If ``torch.compile`` has no such argument, or the model has no backbone.
    """

    def __init__(self, **options: Any) -> None:
        known = [name for name in inspect.signature(torch.compile).parameters if name != 'model']
        for name in options:
            if name not in known:
                raise UserError(
                    f'CompileHook has no option {name!r}{nearest(name, known)}; set those of torch.compile: {known}'
                )
        self.options = options

    def before_run(self, runner: Runner) -> None:
        """Compile; the first images then wait for it."""
        names = compile_parts(runner.model, **self.options)
        runner.logger.info(f'compiled at the first images: {", ".join(names)}')


def compile_parts(model: nn.Module, **options: Any) -> list[str]:
    """Have the backbones and necks in a model compiled when they are first called.

    Args:
        model (nn.Module): A detector or segmentor of the toolboxes, or what holds some of them.
        **options (Any): Arguments of ``torch.compile``.

    Returns:
        list[str]: Names of the parts.

    Raises:
        UserError: If there is no backbone.
    """
    parts = find_backbones(model)
    if not parts:
        raise UserError(
            'CompileHook: the model has no backbone; take the hook out of `custom_hooks`, or set `compile=True` for '
            "mmengine's compilation of the whole step"
        )
    modules = dict(model.named_modules())
    parts |= {name: module for name, module in modules.items() if name.rpartition('.')[2] == 'neck'}
    for module in parts.values():
        module.compile(**options)
    return list(parts)
