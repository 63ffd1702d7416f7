from mmvisattn.models.layers import LN2d, group_rms_norm

import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer


def test_ln2d_normalises_channels_at_each_position():
    torch.manual_seed(0)
    norm = LN2d(6).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5, dtype=torch.double)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_ln2d_is_built_by_mmcv():
    name, norm = build_norm_layer(dict(type='mmvisattn.LN2d', eps=1e-3, requires_grad=False), 8)
    assert isinstance(norm, LN2d) and name == 'ln' and norm.eps == 1e-3
    assert not norm.weight.requires_grad
    conv = ConvModule(4, 8, 1, norm_cfg=dict(type='mmvisattn.LN2d'))
    assert conv(torch.randn(1, 4, 3, 3)).shape == (1, 8, 3, 3)


@pytest.mark.parametrize('group_size', [2, 4, 12])
def test_group_rms_norm_divides_each_group(group_size):
    x = 3 * torch.randn(2, 5, 12, dtype=torch.double)
    out = group_rms_norm(x, group_size, eps=0.1)
    for start in range(0, 12, group_size):
        group = x[..., start : start + group_size]
        expected = group / (group.square().mean(-1, keepdim=True) + 0.1).sqrt()
        torch.testing.assert_close(out[..., start : start + group_size], expected)
    assert group_rms_norm(x.bfloat16(), group_size).dtype == torch.float32
