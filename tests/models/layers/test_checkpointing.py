from mmvisattn.models.layers import checkpointing

import pytest
import torch
from torch import nn


class Counted(nn.Module):
    """Counts its calls; takes and returns what is no tensor as well."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x, y, power):
        self.calls += 1
        return (self.fc(x) * y) ** power, None


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('with_cp', [True, False])
def test_module_is_computed_again_only_where_asked_and_where_a_gradient_needs_it(with_cp, grad):
    torch.manual_seed(0)
    module, x = Counted(), torch.randn(2, 3)
    expected = torch.autograd.grad(module(x, x, 2)[0].sum(), module.fc.weight)
    module.calls = 0
    with torch.set_grad_enabled(grad):
        out, nothing = checkpointing.run(module, x, x, 2, with_cp=with_cp)
    assert nothing is None
    assert torch.equal(out, module(x, x, 2)[0])
    module.calls -= 1
    if grad:
        assert torch.equal(*torch.autograd.grad(out.sum(), module.fc.weight), *expected)
    assert module.calls == (2 if with_cp and grad else 1)
