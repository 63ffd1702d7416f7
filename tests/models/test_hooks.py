"""What users put on the layers of a network: hooks, and adapters in the place of a layer."""

from functools import partial

from mmvisattn.models.necks import FlexAttentionNeck, SimpleFPN

import pytest
import torch
from torch import Tensor, nn

from tests.models.networks import BACKBONES, build

NETWORKS = [*BACKBONES, FlexAttentionNeck, SimpleFPN]
REGISTER = ('register_forward_pre_hook', 'register_forward_hook', 'register_full_backward_hook')


class Adapter(nn.Module):
    """Beside a layer, whose weights it shows as its own, as adapters of low rank are."""

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.used = False

    def __getattr__(self, name):
        return getattr(super().__getattr__('layer'), name) if name != 'layer' else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        self.used = True
        return self.layer(x)


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in net.named_modules() if 'weight' in layer._parameters}


def run(net: nn.Module) -> tuple[Tensor, ...]:
    """Outputs of a forward, after a backward."""
    torch.manual_seed(0)
    if type(net) in BACKBONES:
        outs = net(torch.randn(1, 3, 64, 64, requires_grad=True))
    else:
        sides = (16,) if isinstance(net, SimpleFPN) else (32, 16, 8, 4)
        outs = net([torch.randn(1, 24, side, side, requires_grad=True) for side in sides])
    sum(out.square().sum() for out in outs).backward()
    return outs


@pytest.mark.parametrize('register', REGISTER)
@pytest.mark.parametrize('network', NETWORKS, ids=lambda network: network.__name__)
def test_hooks_see_every_layer(network, register):
    net = build(network)
    expected = run(net)
    seen = set()

    def see(name, *args):
        seen.add(name)

    for name, layer in layers_of(net).items():
        getattr(layer, register)(partial(see, name))
    torch.testing.assert_close(run(net), expected)
    assert layers_of(net).keys() - seen == set()


@pytest.mark.parametrize('network', NETWORKS, ids=lambda network: network.__name__)
def test_an_adapter_in_the_place_of_a_layer_is_used(network):
    net = build(network)
    expected = run(net)
    adapters = {name: Adapter(layer) for name, layer in layers_of(net).items()}
    for name, adapter in adapters.items():
        net.set_submodule(name, adapter)
    torch.testing.assert_close(run(net), expected)
    assert [name for name, adapter in adapters.items() if not adapter.used] == []
