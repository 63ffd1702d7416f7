"""What a token of a sequence depends on, layer by layer: where a network over-focuses."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..models.backbones.sequence_backbone import SequenceBackbone
from ..models.layers.patch_sequence import to_map
from .over_focus import effective_share, token_gradients


def sequence_backbones(model: nn.Module) -> Iterator[SequenceBackbone]:
    """The De-focus networks in a model."""
    return (module for module in model.modules() if isinstance(module, SequenceBackbone))


def token_fields(network: SequenceBackbone, image: Tensor, token: int = -1) -> list[tuple[str, np.ndarray, float]]:
    """Receptive field of a token of the last layer, among the tokens that enter each layer.

    Args:
        network (SequenceBackbone): The network, whose mode stays as it is.
        image (Tensor): (C, H, W).
        token (int): Number of the token in the sequence. Defaults to the last, which a causal network lets see all.

    Returns:
        list[tuple[str, np.ndarray, float]]: For each layer its name, the norm of the gradient by each token as a map
        (rows, columns) of patches, zero for itself, and the share of the others that it spreads over; see
        :func:`~mmvisattn.visualization.over_focus.effective_share`.
    """
    entered: list[Tensor] = []
    left: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda block, args: entered.append(args[0])) for block in network.blocks]
    handles.append(network.blocks[-1].register_forward_hook(lambda block, args, out: left.append(out)))
    try:
        with torch.enable_grad():
            network(image.detach().clone()[None].requires_grad_())
            fields = token_gradients(left[0][:, token].norm(dim=-1), entered)
    finally:
        for handle in handles:
            handle.remove()
    # The residual path gives a token itself more than all others.
    others = torch.arange(entered[0].shape[1], device=image.device) != token % entered[0].shape[1]
    size, window = network.patch_embed.layout(image)
    return [
        (
            f'layer {number}',
            to_map((field * others)[..., None], size, window)[0, 0].float().cpu().numpy(),
            float(effective_share(field[0, others])),
        )
        for number, field in enumerate(fields, 1)
    ]
