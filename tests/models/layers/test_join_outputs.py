from mmvisattn.models.layers.join_outputs import join_outputs

import pytest
import torch
from torch import Tensor, nn


def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


def outputs(parts: nn.ModuleList, training: bool = True) -> tuple[Tensor, ...]:
    return join_outputs([part(torch.ones(2, 4)) for part in parts], training)


def test_an_output_that_nobody_uses_gets_zeros():
    parts, alone = layers(), layers()
    outputs(parts)[1].square().sum().backward()
    alone[1](torch.ones(2, 4)).square().sum().backward()
    assert torch.equal(parts[1].weight.grad, alone[1].weight.grad)
    assert all(parts[i].weight.grad.count_nonzero() == 0 for i in (0, 2))


def test_what_is_frozen_stays_without_a_gradient():
    parts = layers()
    parts[0].requires_grad_(False)
    outs = outputs(parts)
    assert [out.requires_grad for out in outs] == [False, True, True]
    outs[2].sum().backward()
    assert parts[0].weight.grad is None and parts[1].weight.grad is not None


def test_values_stay_where_they_are_and_may_be_written_into():
    outs = [part(torch.ones(2, 4)) for part in layers()]
    joined = join_outputs(outs, True)
    assert all(torch.equal(a, b) and a.data_ptr() == b.data_ptr() for a, b in zip(joined, outs))
    joined[0].relu_().sum().backward()


@pytest.mark.parametrize('training', [True, False])
def test_nothing_is_joined_where_nothing_is_to_be_learned(training):
    with torch.set_grad_enabled(not training):
        assert all(out.grad_fn is None or 'Join' not in out.grad_fn.name() for out in outputs(layers(), training))


def test_compiles_to_one_graph():
    parts = layers()
    torch.compile(lambda: outputs(parts)[1].sum(), fullgraph=True, backend='aot_eager')().backward()
    assert all(part.weight.grad is not None for part in parts)
