import io

from mmvisattn.ops.pointwise_conv import PointwiseConv2d, pointwise_conv2d

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(2, 6, 5, 7), (1, 6, 1, 1), (1, 6, 4, 1), (0, 6, 5, 7)])
@pytest.mark.parametrize('with_bias', [False, True])
def test_equals_the_convolution_in_value_gradients_and_layout(size, with_bias, memory_format):
    x = torch.randn(size, dtype=torch.double).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(9, 6, 1, 1, dtype=torch.double, requires_grad=True)
    bias = torch.randn(9, dtype=torch.double, requires_grad=True) if with_bias else None
    inputs = [x, weight, bias] if with_bias else [x, weight]
    out, expected = pointwise_conv2d(x, weight, bias), F.conv2d(x, weight, bias)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=memory_format)
    mask = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * mask).sum(), inputs) for y in (out, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][1].is_contiguous()


def test_part_of_the_channels():
    x = torch.randn(2, 12, 5, 7, dtype=torch.double).to(memory_format=torch.channels_last)
    weight = torch.randn(9, 12, 1, 1, dtype=torch.double)
    for part in (slice(0, 4), slice(3, 12, 3)):  # maps and kernels that are not dense
        torch.testing.assert_close(pointwise_conv2d(x[:, part], weight[:, part]), F.conv2d(x[:, part], weight[:, part]))


def test_second_derivative():
    x = torch.randn(1, 3, 2, 4, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(2, 3, 1, 1, dtype=torch.double), torch.randn(2, dtype=torch.double)
    inputs = (x, weight.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(pointwise_conv2d, inputs)
    assert torch.autograd.gradgradcheck(pointwise_conv2d, inputs)


def test_autocast():
    layer = PointwiseConv2d(6, 9)
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)


def test_a_compiled_or_exported_graph_shows_a_convolution():
    layer = PointwiseConv2d(6, 9).eval()
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    exported = torch.export.export(layer, (x,))
    assert [str(node.target) for node in exported.graph.nodes if node.op == 'call_function'] == ['aten.conv2d.default']
    torch.testing.assert_close(exported.module()(x), layer(x))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, x), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    assert '_convolution' in str(loaded.inlined_graph)
    torch.testing.assert_close(loaded(x), layer(x))
