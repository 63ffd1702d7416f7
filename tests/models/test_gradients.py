"""What a backward does with the gradients that it is given."""

from functools import partial

from mmvisattn.models.backbones import DefocusViT, FCViT, FlexViT
from mmvisattn.models.necks import SimpleFPN

import pytest
import torch
from torch import Tensor

from tests.models.networks import BACKBONES, build


def keep_gradients(out: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Have every node of the graph keep the gradient that it gets, with a copy from before it runs.

    Args:
        out (Tensor): Result whose graph it is.

    Returns:
        list[tuple[str, Tensor, Tensor]]: Name of the node, gradient and copy; empty until the backward has run.
    """
    kept, nodes, seen = [], [out.grad_fn], set()

    def keep(name, grads):
        kept.extend((name, grad, grad.clone()) for grad in grads if grad is not None)

    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            node.register_prehook(partial(keep, node.name()))
            nodes.extend(following for following, _ in node.next_functions)
    return kept


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_a_gradient_that_is_given_stays_as_it_is(network):
    net = build(network).train()
    out = sum(out.square().sum() for out in net(torch.randn(2, 3, 40, 56)))
    kept = keep_gradients(out)
    out.backward()
    assert len(kept) > 50
    assert {name for name, grad, before in kept if not torch.equal(grad, before)} == set()


SEVERAL = {
    'FCViT': partial(build, FCViT),
    'DefocusViT': partial(build, DefocusViT, out_indices=(0, 1)),
    'FlexViT': partial(build, FlexViT, out_indices=(0, 1)),
    'SimpleFPN': partial(build, SimpleFPN),
}


@pytest.mark.parametrize('used', [0, 1])
@pytest.mark.parametrize('network', SEVERAL)
def test_one_output_is_enough_for_a_gradient_of_every_parameter(network, used):
    net = SEVERAL[network]().train()
    net([torch.randn(2, 24, 4, 6)] if network == 'SimpleFPN' else torch.randn(2, 3, 64, 96))[used].sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
