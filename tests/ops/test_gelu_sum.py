from mmvisattn.ops.gelu_sum import gelu_sum

import pytest
import torch
import torch.nn.functional as F


def inputs(dtype=torch.double):
    torch.manual_seed(0)
    shapes = (2, 3, 4, 5), (2, 3, 1, 1), (2, 3, 4, 5)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_first_and_second_gradients():
    x, scale, y = args = inputs()
    torch.testing.assert_close(gelu_sum(*args), x + scale * F.gelu(y))
    assert torch.autograd.gradcheck(gelu_sum, args)
    assert torch.autograd.gradgradcheck(gelu_sum, args)


@pytest.mark.parametrize('frozen', range(3))
def test_gradients_of_some(frozen):
    args = inputs()
    args[frozen].requires_grad_(False)
    assert torch.autograd.gradcheck(gelu_sum, args)


def test_neither_the_activation_nor_the_sum_is_kept():
    x, scale, y = args = inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        gelu_sum(*args)
    assert sorted(kept) == sorted((scale.data_ptr(), y.data_ptr()))


def test_a_branch_in_half_precision():
    x, scale, y = args = inputs(torch.float)
    y = y.detach().bfloat16().requires_grad_()
    out = gelu_sum(x, scale, y)
    assert out.dtype == torch.float
    exact = gelu_sum(*args)
    torch.testing.assert_close(out, exact, rtol=0.05, atol=0.05)
    mask = torch.randn_like(out)
    for ours, theirs in zip(torch.autograd.grad(out, (x, scale, y), mask), torch.autograd.grad(exact, args, mask)):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)
