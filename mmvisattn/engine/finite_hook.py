"""Stop at the first value that is no number."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UserError
from ..registry import HOOKS


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stop training with the name of the first module whose output, gradient or weights are not finite.

    It looks at all that modules put out, at all gradients, and after each iteration at the weights, which makes
    training slower; a flag for the search, not for every day: ``custom_hooks=[dict(type='mmvisattn.FiniteHook')]``.
    Under
    mixed precision with a dynamic loss scale infinite gradients are in order (the step is left out); they are not
    looked at there.

    Raises:
        UserError: With the iteration, the module and what is wrong with it.
    """

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []
        self.iteration = 0

    def before_train(self, runner: Runner) -> None:
        """Watch all modules."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, module in model.named_modules():
            if not list(module.children()):  # the inner ones come first anyway
                self.handles.append(module.register_forward_hook(self._watch(name)))
        if not hasattr(runner.optim_wrapper, 'loss_scaler'):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self.handles.append(parameter.register_post_accumulate_grad_hook(self._watch_gradient(name)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the pixels."""
        self.iteration = runner.iter
        inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
        for number, image in enumerate(inputs if isinstance(inputs, list | Tensor) else []):
            if not is_finite(image):
                self._stop(f'image {number} of the batch', 'pixels', 'look into the data and their pipeline')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at losses and weights; the gradients are gone by now."""
        for name, value in (outputs or {}).items():
            if isinstance(value, Tensor) and not is_finite(value):
                self._stop(f'`{name}`', 'a loss', 'see which part of the head it comes from')
        for name, parameter in runner.model.named_parameters():
            if not is_finite(parameter):
                self._stop(f'`{name}`', 'weights', 'lower the learning rate or clip gradients')

    def after_train(self, runner: Runner) -> None:
        """Let the modules alone."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _watch(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple, output: object) -> None:
            if module.training and isinstance(output, Tensor) and not is_finite(output):
                given = all(is_finite(value) for value in inputs if isinstance(value, Tensor))
                of = 'of finite inputs' if given else 'of inputs that are not finite either'
                self._stop(f'`{name}` ({type(module).__name__})', f'an output {of}', 'lower the learning rate there')

        return look

    def _watch_gradient(self, name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if parameter.grad is not None and not is_finite(parameter.grad):
                self._stop(f'`{name}`', 'a gradient', 'lower the learning rate or clip gradients')

        return look

    def _stop(self, where: str, what: str, remedy: str) -> None:
        raise UserError(f'FiniteHook: iteration {self.iteration + 1}: {where} has {what} with NaN or inf; {remedy}')


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; whole numbers are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
