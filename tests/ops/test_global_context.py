from mmvisattn.ops.global_context import global_context

import pytest
import torch


def make_inputs(size, heads, dtype=torch.double):
    torch.manual_seed(0)
    channels = size[1]
    shapes = size, (channels, channels), (heads,), (heads,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def ours(x, kernel, weight, bias):
    return global_context(x, lambda pooled: (pooled @ kernel).tanh(), weight, bias)


def by_the_formula(x, kernel, weight, bias):
    heads, head_dim = len(weight), x.shape[1] // len(weight)
    pooled = x.mean((2, 3))
    value = (pooled @ kernel).tanh()
    x_heads, pooled, value = (y.unflatten(1, (heads, head_dim)) for y in (x, pooled, value))
    similarity = torch.einsum('bndhw,bnd->bnhw', x_heads, pooled) / head_dim**0.5
    std, mean = torch.std_mean(similarity, (1, 2, 3), keepdim=True)
    similarity = (similarity - mean) / (std + 1e-5) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return x + torch.einsum('bnhw,bnd->bndhw', similarity, value).flatten(1, 2)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size, heads', [((2, 12, 5, 7), 3), ((1, 8, 1, 3), 8), ((2, 6, 4, 4), 1)])
def test_equals_the_formula_in_value_and_gradients(size, heads, memory_format):
    inputs = make_inputs(size, heads)
    x = inputs[0].contiguous(memory_format=memory_format)
    out, expected = ours(x, *inputs[1:]), by_the_formula(*inputs)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    mask = torch.randn_like(expected)
    torch.testing.assert_close(*[torch.autograd.grad(y, inputs, mask) for y in (out, expected)])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The sum of squares of these similarities is beyond the range of float16."""
    inputs = [x.detach() for x in make_inputs((1, 16, 40, 40), 2)]
    inputs[0] = 10 * inputs[0] + 10
    half = [x.to(dtype) for x in inputs]
    out, expected = ours(*half), by_the_formula(*(x.double() for x in half))
    assert out.dtype == dtype
    assert (out - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()
