"""What networks are measured against: the same formulas, one by one, with torch's and torchvision's operators."""

import sys
from pathlib import Path
from unittest import mock

from mmvisattn import cli  # noqa: F401  first: with it the toolboxes run without a compiled mmcv

# isort: split
import torch
from mmcv.ops import RoIAlign
from torch import Tensor, nn

from mmvisattn.models.backbones import DefocusMamba, FCViT, defocus_mamba

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # that of FCViT lives with the tests

from tests.models.backbones.fcvit_reference import Reference as PlainFCViT


def materialising_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str = 'materialising'
) -> Tensor:
    """The selective scan of De-focus Mamba: decays and inputs of all steps, (B, D, L, N), at once, then a loop."""
    decay = torch.exp(torch.einsum('bdl,dn->bdln', delta, A))
    added = torch.einsum('bdl,bnl,bdl->bdln', delta, B, u)
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for decay_t, added_t, C_t in zip(decay.unbind(2), added.unbind(2), C.unbind(2), strict=True):
        h = decay_t * h + added_t
        y.append(torch.einsum('bdn,bn->bd', h, C_t))
    return torch.stack(y, dim=2)


class PlainDefocusMamba(nn.Module):
    """De-focus Mamba with :func:`materialising_scan`.

    Args:
        network: The network whose parameters it has.
    """

    def __init__(self, network: DefocusMamba) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the network."""
        with mock.patch.object(defocus_mamba, 'selective_scan', materialising_scan):
            return self.network(x)


REFERENCES = {FCViT: PlainFCViT, DefocusMamba: PlainDefocusMamba}


def to_reference(network: nn.Module) -> nn.Module | None:
    """A backbone put into its plain formulation, or a model that has one; None where there is none.

    The RoIAlign of a model becomes torchvision's, gradient included.
    """
    if type(network) in REFERENCES:
        return REFERENCES[type(network)](network)
    if type(getattr(network, 'backbone', None)) not in REFERENCES:
        return None
    network.backbone = to_reference(network.backbone)
    for module in network.modules():
        if isinstance(module, RoIAlign):
            module.use_torchvision = True
    return network
