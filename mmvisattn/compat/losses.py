"""Class weights in mmseg's cross entropy, where some pixels are void.

With ``class_weight`` mmseg divides the loss by the weights of all pixels, and looks up that of void too: label 255 ends
in ``IndexError``, on a GPU in a device-side assert. Void pixels are what padding and crops leave, so no training is
safe from it. Here the divisor is the sum over the other pixels, which is what torch divides by.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from ._import_hook import around_import

if TYPE_CHECKING:
    from torch import Tensor

MODULE = 'mmseg.models.losses.cross_entropy_loss'


def install() -> str | None:
    """Have mmseg's function wrapped when it is imported.

    Returns:
        str | None: What was done, or None where mmseg is not installed.
    """
    if importlib.util.find_spec('mmseg') is None:
        return None
    around_import(MODULE, _wrapped)
    return 'class weights of mmseg leave void pixels out'


@contextmanager
def _wrapped(module: ModuleType) -> Iterator[None]:
    yield
    module.cross_entropy = leaving_void_out(module.cross_entropy)  # type: ignore[attr-defined]


def leaving_void_out(cross_entropy: Callable[..., 'Tensor']) -> Callable[..., 'Tensor']:
    """The function with a divisor of its own, where there are class weights and the mean is asked for."""

    @functools.wraps(cross_entropy)
    def wrapped(
        pred: 'Tensor',
        label: 'Tensor',
        weight: 'Tensor | None' = None,
        class_weight: 'Tensor | None' = None,
        reduction: str = 'mean',
        avg_factor: 'float | Tensor | None' = None,
        ignore_index: int = -100,
        **kwargs: bool,
    ) -> 'Tensor':
        if class_weight is not None and avg_factor is None and reduction == 'mean':
            avg_factor = class_weight[label[label != ignore_index]].sum()
        return cross_entropy(pred, label, weight, class_weight, reduction, avg_factor, ignore_index, **kwargs)

    return wrapped
