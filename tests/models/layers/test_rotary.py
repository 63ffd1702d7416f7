from mmvisattn.models.layers import turn_pairs

import pytest
import torch


@pytest.mark.parametrize('shape', [(2, 3, 5, 8), (5, 2)])
def test_pairs_of_one_angle_turn_as_complex_numbers(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.double)
    angle = torch.randn(5, shape[-1] // 2, dtype=torch.double)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)
    of_channels = angle.repeat_interleave(2, -1)
    out = turn_pairs(x, of_channels.cos(), of_channels.sin())
    torch.testing.assert_close(out, torch.view_as_real(turned).flatten(-2))


def test_channels_of_a_pair_may_have_angles_of_their_own():
    x, angle = torch.tensor([[3.0, 5.0]]), torch.tensor([0.1, 0.7])
    (even,), (odd,) = turn_pairs(x, angle.cos(), angle.sin()).unbind(-1)
    expected = 3 * angle[0].cos() - 5 * angle[0].sin(), 5 * angle[1].cos() + 3 * angle[1].sin()
    torch.testing.assert_close((even, odd), expected)


def test_half_precision_is_turned_in_float32():
    x, angle = torch.randn(5, 8).bfloat16(), torch.randn(5, 8)
    out = turn_pairs(x, angle.cos(), angle.sin())
    assert out.dtype == torch.float32
    assert torch.equal(out, turn_pairs(x.float(), angle.cos(), angle.sin()))
