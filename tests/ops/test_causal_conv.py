from mmvisattn.ops.causal_conv import CausalDepthwiseConv1d

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize('length', [1, 2, 3, 11])
def test_causal_convolution_equals_torchs(length):
    torch.manual_seed(0)
    conv = CausalDepthwiseConv1d(6, 4).double()
    x = torch.randn(2, length, 6, dtype=torch.double, requires_grad=True)
    expected = F.conv1d(x.mT, conv.weight, conv.bias, padding=3, groups=6)[..., :length].mT
    out = conv(x)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    tensors = (x, conv.weight, conv.bias)
    torch.testing.assert_close(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad))
