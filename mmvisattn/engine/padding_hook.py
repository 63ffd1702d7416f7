"""Tell FlexAttentionNeck what of a batch is padding."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from ..models.necks import FlexAttentionNeck
from ..registry import HOOKS


@HOOKS.register_module()
class PaddingHook(Hook):
    """Have each FlexAttentionNeck see the images that its model's backbone is given.

    The toolboxes hand a neck maps alone, in which padding looks like anything else. With this hook no cell of padding
    is chosen, and nothing attends to it, in training, validation and test. Without a runner :func:`watch_images` does
    the same.

    Raises:
        UserError: If the model has no FlexAttentionNeck behind a backbone.
    """

    def before_run(self, runner: Runner) -> None:
        """Find the necks."""
        if not watch_images(runner.model):
            raise UserError(
                'PaddingHook: the model has no FlexAttentionNeck; take the hook out of `custom_hooks`, or set '
                'FlexAttentionNeck as neck'
            )


def watch_images(model: nn.Module) -> list[FlexAttentionNeck]:
    """Have the necks in a model see the images of its backbone, once for all.

    Args:
        model (nn.Module): A detector or segmentor of the toolboxes, or what holds some of them.

    Returns:
        list[FlexAttentionNeck]: The necks.
    """
    found = []
    for part in model.modules():
        backbone, neck = getattr(part, 'backbone', None), getattr(part, 'neck', None)
        if isinstance(backbone, nn.Module) and isinstance(neck, nn.Module):
            for module in neck.modules():
                if isinstance(module, FlexAttentionNeck):
                    module.watch(backbone)
                    found.append(module)
    return found
