import pytest
import torch
import torch.nn.functional as F

from mmvisattn.ops import depthwise_conv
from mmvisattn.ops.depthwise_conv import DepthwiseConv2d, depthwise_conv2d

CASES = [
    # batch, channels, height, width, kernel, padding
    (2, 5, 9, 12, 11, 5),
    (1, 8, 16, 16, 7, 3),
    (3, 4, 4, 5, 11, 5),  # a map smaller than the kernel
    (2, 3, 13, 10, 7, 0),
    (2, 3, 6, 7, 7, 9),  # more padding than the kernel reaches
    (2, 6, 8, 8, 3, 1),
]


@pytest.fixture
def used(monkeypatch):
    """Counts how often our own backward ran, so that a test cannot pass on torch's by mistake."""
    calls = []
    original = depthwise_conv._DepthwiseConv2d.apply
    monkeypatch.setattr(depthwise_conv._DepthwiseConv2d, 'apply', lambda *args: (calls.append(1), original(*args))[1])
    return calls


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('case', CASES)
def test_equals_torch_in_value_and_gradients(case, memory_format, used):
    B, C, H, W, k, padding = case
    torch.manual_seed(0)
    x = torch.randn(B, C, H, W, dtype=torch.double).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(C, 1, k, k, dtype=torch.double, requires_grad=True)
    bias = torch.randn(C, dtype=torch.double, requires_grad=True)
    out = depthwise_conv2d(x, weight, bias, padding)
    expected = F.conv2d(x, weight, bias, padding=padding, groups=C)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(out, (x, weight, bias), grad)
    theirs = torch.autograd.grad(expected, (x, weight, bias), grad)
    torch.testing.assert_close(ours, theirs)
    assert ours[1].is_contiguous()  # a gradient of other strides than its parameter costs DDP a copy
    assert len(used) == (k >= depthwise_conv.MIN_KERNEL_SIZE)


def test_first_and_second_derivatives(used):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 1, 7, 7, dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: depthwise_conv2d(*args, 3), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *args: depthwise_conv2d(*args, 3), (x, weight, bias))
    assert used


def test_non_contiguous_input_and_no_bias():
    x = torch.randn(2, 9, 4, 10).transpose(1, 2)[..., ::2].requires_grad_()
    weight = torch.randn(4, 1, 7, 7, requires_grad=True)
    out = depthwise_conv2d(x, weight, padding=3)
    torch.testing.assert_close(out, F.conv2d(x, weight, padding=3, groups=4))
    out.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_empty_batch():
    conv = DepthwiseConv2d(4, 11)
    out = conv(torch.randn(0, 4, 6, 6))
    assert out.shape == (0, 4, 6, 6)
    out.sum().backward()
    assert (conv.weight.grad == 0).all()


@pytest.mark.parametrize('frozen', ['weight', 'input'])
def test_only_the_gradients_that_are_needed(frozen):
    x = torch.randn(2, 4, 8, 8, requires_grad=frozen != 'input')
    conv = DepthwiseConv2d(4, 7).requires_grad_(frozen != 'weight')
    conv(x).sum().backward()
    assert (x.grad is None) == (frozen == 'input')
    assert (conv.weight.grad is None) == (frozen == 'weight')


def test_mixed_precision_on_the_cpu():
    conv = DepthwiseConv2d(4, 7)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32


def test_traced_graph_shows_a_plain_convolution():
    conv = DepthwiseConv2d(4, 11)
    program = torch.export.export(conv, (torch.randn(1, 4, 12, 12),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert targets == ['aten.conv2d.default']
