"""The parts of a model that choose cells."""

from typing import Any

from mmengine.model import is_model_wrapper

from ..errors import UserError
from ..models.backbones import FlexViT
from ..models.necks import FlexAttentionNeck
from .padding_hook import watch_images


def find_cell_networks(model: Any, hook: str) -> tuple[Any, list[FlexViT | FlexAttentionNeck]]:
    """A model without its wrapper, and the FlexViTs and FlexAttentionNecks in it, which see its images.

    Args:
        model (nn.Module): The model of a runner.
        hook (str): Name of the hook that asks, for the error.

    Returns:
        tuple[nn.Module, list[FlexViT | FlexAttentionNeck]]: The model, and what chooses cells in it: nothing where a
        FlexViT is a plain ViT.

    Raises:
        UserError: If there is neither of them.
    """
    while is_model_wrapper(model):
        model = model.module
    found = [module for module in model.modules() if isinstance(module, (FlexViT, FlexAttentionNeck))]
    if not found:
        raise UserError(
            f'{hook}: the model has no FlexAttention; take the hook out of `custom_hooks`, or set FlexViT as backbone '
            'or FlexAttentionNeck as neck'
        )
    watch_images(model)
    return model, [network for network in found if hasattr(network, 'selector')]
