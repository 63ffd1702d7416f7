"""Networks in their plain formulation: the same formulas, one by one, with torch's and torchvision's operators."""

from collections.abc import Callable
from typing import Any

from mmcv.ops import RoIAlign
from torch import nn

from ..models.backbones import DefocusMamba, FCViT
from .defocus import PlainDefocusMamba
from .fcvit import PlainFCViT

REFERENCES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {FCViT: PlainFCViT, DefocusMamba: PlainDefocusMamba}


def to_reference(network: nn.Module) -> nn.Module | None:
    """A backbone put into its plain formulation, or a model that has one; None where there is none.

    The RoIAlign of a model becomes torchvision's, gradient included.
    """
    if type(network) in REFERENCES:
        return REFERENCES[type(network)](network)
    backbone: Any = getattr(network, 'backbone', None)
    if type(backbone) not in REFERENCES:
        return None
    network.backbone = REFERENCES[type(backbone)](backbone)
    for module in network.modules():
        if isinstance(module, RoIAlign):
            module.use_torchvision = True
    return network
