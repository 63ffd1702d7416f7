"""Warm start of FlexAttention: from the plain path to the hierarchical one."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import UserError
from ..models.layers.hierarchical_attention import HierarchicalBlock
from ..registry import HOOKS


@HOOKS.register_module()
class FlexRampHook(Hook):
    """Blend the hierarchical path in over the first part of training: α = min(1, progress / ``fraction``).

    As in `FlexAttention <https://arxiv.org/abs/2407.20228>`_, so that pretrained weights meet the selected
    high-resolution tokens little by little. α follows from the iteration alone, hence a resumed run goes on where it
    stopped. Evaluation always takes the hierarchical path.

    Args:
        fraction (float): Part of the training over which α rises from 0 to 1, above 0 and up to 1. Defaults to 0.1.

    Raises:
        UserError: If ``fraction`` is out of range, or the model has no FlexAttention.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        if not 0 < fraction <= 1:
            raise UserError(
                f'FlexRampHook: `fraction` is {fraction}; set it to a part of the training, above 0 and up to 1; leave '
                'the hook out to train without a warm start'
            )
        self.fraction = fraction

    def before_train(self, runner: Runner) -> None:
        """Find the layers to blend."""
        self.blocks = [module for module in runner.model.modules() if isinstance(module, HierarchicalBlock)]
        if not self.blocks:
            raise UserError(
                'FlexRampHook: the model has no FlexAttention; take the hook out of `custom_hooks`, or set FlexViT as '
                'backbone or FlexAttentionNeck as neck'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set α for the iteration to come."""
        alpha = min(1.0, runner.iter / (self.fraction * runner.max_iters))
        for block in self.blocks:
            block.set_alpha(alpha)
        runner.message_hub.update_scalar('train/flex_alpha', alpha)
