from mmvisattn.ops.gelu_linear import gelu_linear

import pytest
import torch
import torch.nn.functional as F


def inputs(is_bias, dtype=torch.double):
    torch.manual_seed(0)
    shapes = (7, 5), (3, 5), (3,) if is_bias else (7, 3)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize('is_bias', [True, False])
def test_first_and_second_gradients(is_bias):
    x, weight, added = args = inputs(is_bias)
    expected = F.linear(F.gelu(x), weight) + added
    torch.testing.assert_close(gelu_linear(*args), expected)
    assert torch.autograd.gradcheck(gelu_linear, args)
    assert torch.autograd.gradgradcheck(gelu_linear, args)


@pytest.mark.parametrize('frozen', range(3))
def test_gradients_of_some(frozen):
    args = inputs(True)
    args[frozen].requires_grad_(False)
    assert torch.autograd.gradcheck(gelu_linear, args)


def test_float32_is_as_exact_as_the_two_operators():
    args = inputs(False, torch.float)
    exact = gelu_linear(*(x.detach().double() for x in args))
    torch.testing.assert_close(gelu_linear(*args).double(), exact, rtol=1e-5, atol=1e-6)


def test_the_activation_is_not_kept():
    x, weight, added = args = inputs(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        gelu_linear(*args)
    assert sorted(kept) == sorted((x.data_ptr(), weight.data_ptr()))


def test_mixed_precision():
    args = inputs(True, torch.float)
    with torch.autocast('cpu', torch.bfloat16):
        out = gelu_linear(*args)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), gelu_linear(*args), rtol=0.05, atol=0.05)
