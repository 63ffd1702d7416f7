"""Cases for the Triton kernels, on a GPU or in Triton's interpreter; run by test_depthwise_conv_triton.py."""

from functools import partial

from mmvisattn.ops import depthwise_conv, triton_support

import pytest
import torch
import torch.nn.functional as F

DEVICE = triton_support.DEVICE
conv = partial(depthwise_conv.depthwise_conv2d, backend='triton')
LAYOUTS = pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])


def make_inputs(batch, channels, size, kernel, dtype=torch.float32):
    """Random image, kernels and bias on the device."""
    rng = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *size), (channels, 1, *kernel), (channels,)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes]


def gradients(function, inputs, padding):
    """Result and gradients for a random gradient of the result."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, padding=padding)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), *torch.autograd.grad(out, inputs, grad.contiguous(memory_format=layout_of(out)))


def layout_of(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def expected_gradients(inputs, padding):
    function = partial(F.conv2d, groups=inputs[0].shape[1])
    return gradients(function, [x.double().cpu() for x in inputs], padding)


def assert_close(actual, expected, tolerance):
    """Largest difference relative to the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual.double().cpu() - expected).abs().max()
    assert error <= tolerance * expected.abs().max(), (error, expected.abs().max())


def test_available():
    assert depthwise_conv.available_backends()['triton'] is None


@LAYOUTS
@pytest.mark.parametrize(
    ('sizes', 'padding', 'dtype'),
    [
        # batch, channels, image, kernel
        ((2, 1, (5, 6), (7, 7)), 3, torch.float32),
        ((1, 33, (2, 4), (3, 3)), 1, torch.float32),  # more channels than lanes
        ((1, 2, (3, 37), (3, 3)), 1, torch.float32),  # more columns than lanes
        ((1, 1, (8, 7), (4, 6)), 2, torch.float32),  # even sides
        ((1, 2, (7, 9), (2, 1)), 0, torch.float32),
        ((1, 1, (9, 8), (7, 7)), 0, torch.float32),
        ((1, 1, (3, 4), (3, 5)), 5, torch.float32),  # rows that no tap reaches
        ((1, 1, (1, 1), (1, 1)), 0, torch.float32),
        ((1, 1, (4, 5), (18, 3)), 8, torch.float32),  # more taps than one program sums
        ((2, 3, (6, 5), (3, 3)), 1, torch.float64),
    ],
)
def test_equals_torch_in_value_and_gradients(sizes, padding, dtype, layout):
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    inputs = make_inputs(*sizes, dtype)
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    results = gradients(conv, inputs, padding)
    for a, e in zip(results, expected_gradients(inputs, padding)):
        assert a.dtype == dtype
        assert_close(a, e, tolerance)
    assert results[0].is_contiguous(memory_format=layout) and results[1].is_contiguous(memory_format=layout)
    assert results[2].is_contiguous()


@LAYOUTS
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, layout):
    inputs = make_inputs(2, 2, (5, 6), (5, 5), dtype)
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    # the interpreter cuts off where it makes bfloat16, a GPU rounds
    ulp = 1.01 if triton_support.INTERPRETED else 0.51
    out, *grads = gradients(conv, inputs, 2)
    expected_out, *expected = expected_gradients(inputs, 2)
    assert_close(out, expected_out, ulp * torch.finfo(dtype).eps)
    for a, e in zip(grads[:2], expected):  # torch sums the gradient of the bias
        assert a.dtype == dtype
        assert_close(a, e, ulp * torch.finfo(dtype).eps)


def test_strides_do_not_matter():
    x, weight, bias = make_inputs(2, 2, (2, 6), (3, 3))
    views = [
        x[:, :, ::2, 1::2],
        x.transpose(2, 3),
        x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),
        x[:1].expand(2, -1, -1, -1),
        x[:, :1].expand(-1, 2, -1, -1),
    ]
    weight = torch.stack([weight, weight], dim=-1)[..., 0]
    for view in views:
        assert not view.is_contiguous()
        results = gradients(conv, [view, weight, bias], 1)
        expected = gradients(conv, [view.contiguous(), weight.contiguous(), bias], 1)
        assert torch.equal(results[0], expected[0])
        for a, e in zip(results, expected):
            assert_close(a, e.double().cpu(), 2e-6)


def test_gradient_of_a_sum():
    """It has strides of zero."""
    x, weight, bias = (t.requires_grad_() for t in make_inputs(1, 2, (4, 5), (3, 3)))
    conv(x, weight, bias, 1).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1, groups=2).sum(), (x, weight, bias))
    for t, e in zip((x, weight, bias), expected):
        torch.testing.assert_close(t.grad, e, rtol=1e-5, atol=1e-5)


@LAYOUTS
def test_first_and_second_derivatives(layout):
    inputs = make_inputs(1, 1, (2, 3), (2, 1), torch.float64)
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(partial(conv, padding=1), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(partial(conv, padding=1), inputs, fast_mode=True)


@LAYOUTS
def test_nan_goes_where_it_must_and_nowhere_else(layout):
    x, weight, bias = make_inputs(1, 2, (9, 10), (5, 5))
    x = x.contiguous(memory_format=layout)
    clean = conv(x, weight, bias, 2)
    x[0, 1, 4, 5] = float('nan')
    out = conv(x, weight, bias, 2)
    expected = torch.zeros(out.shape, dtype=torch.bool)
    expected[0, 1, 2:7, 3:8] = True
    assert torch.equal(out.isnan().cpu(), expected)
    assert torch.equal(out[~out.isnan()], clean[~out.isnan()])


@LAYOUTS
def test_every_result_is_written_and_nothing_else_is_read(layout):
    """With NaN in all fresh memory, and bit for bit the same twice."""
    inputs = make_inputs(2, 3, (5, 4), (3, 3))
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    expected = gradients(conv, inputs, 1)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        results = gradients(conv, inputs, 1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, e) for a, e in zip(results, expected))


def test_empty_batch():
    x, weight, bias = (t.requires_grad_() for t in make_inputs(0, 3, (6, 5), (7, 7)))
    out = conv(x, weight, bias, 3)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any() and not bias.grad.any()


def test_mixed_precision():
    x, weight, bias = (t.requires_grad_() for t in make_inputs(1, 2, (4, 5), (3, 3)))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = conv(x, weight, bias, 1)
    assert out.dtype == torch.bfloat16
    expected = F.conv2d(x, weight, bias, padding=1, groups=2)
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0.1)
    out.float().square().mean().backward()
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason='the rule is for CUDA')
@LAYOUTS
def test_auto_computes_the_same(layout):
    inputs = make_inputs(2, 8, (16, 16), (11, 11))
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    out = depthwise_conv.depthwise_conv2d(*inputs, 5)
    assert_close(out, expected_gradients(inputs, 5)[0], 5e-3)  # TF32
