import json

from mmvisattn.errors import UserError
from mmvisattn.models.necks import SimpleFPN
from mmvisattn.testing import golden_image, load_golden_weights

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS

from tests.golden import load


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_the_authors_neck(dtype):
    golden = load('simplefpn_out4_1x64x8x12')
    neck = SimpleFPN(64, 32, num_outs=4)
    load_golden_weights(neck)
    assert list(neck.state_dict()) == golden['keys'].tolist()
    assert {k: list(v.shape) for k, v in neck.state_dict().items()} == json.loads(str(golden['shapes']))
    neck = neck.to(dtype)
    x = golden_image(golden['input_spec'], dtype=dtype).requires_grad_()
    outs = neck((x,))
    suffix, atol, rtol = ('', 1e-5, 1e-5) if dtype == torch.float32 else ('_f64', 1e-12, 1e-11)
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, torch.from_numpy(golden[f'out{i}{suffix}']), rtol=0, atol=atol)
    assert len(outs) == golden['num_outputs']
    sum(out.square().mean() for out in outs).backward()
    for name, norm in zip(golden['param_names'].tolist(), golden['param_grad_norms_f64']):
        assert neck.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=rtol), name
    assert x.grad.norm().item() == pytest.approx(float(golden['input_grad_norm_f64']), rel=rtol)


def build(**kwargs):
    torch.manual_seed(0)
    return SimpleFPN(16, 8, **kwargs)


@pytest.mark.parametrize('num_outs', [5, 6])
def test_further_levels_take_every_second_position(num_outs):
    x = torch.randn(2, 16, 14, 21)
    outs, four = build(num_outs=num_outs)((x,)), build(num_outs=4)((x,))
    torch.testing.assert_close(outs[:4], four)
    assert [tuple(out.shape[2:]) for out in outs] == [(56, 84), (28, 42), (14, 21), (7, 10), (4, 5), (2, 3)][:num_outs]
    for before, after in zip(outs[3:], outs[4:]):
        assert torch.equal(after, before[:, :, ::2, ::2])


@pytest.mark.parametrize('start_level', range(4))
@pytest.mark.parametrize('num_outs', [1, 3, 5])
def test_only_what_is_returned_is_built(start_level, num_outs):
    x = torch.randn(1, 16, 8, 8)
    neck = build(num_outs=num_outs, start_level=start_level)
    outs = neck((x,))
    strides = [2.0 ** (2 - start_level - i) for i in range(num_outs)]
    assert [out.shape[3] / 8 for out in outs] == [max(stride, 1 / 8) for stride in strides]
    grads = torch.autograd.grad(sum((out * torch.randn_like(out)).sum() for out in outs), list(neck.parameters()))
    assert all(grad.abs().max() > 0 for grad in grads)


def test_mixed_precision():
    neck, x = build(), torch.randn(1, 16, 8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        outs = neck((x,))
    for out, expected in zip(outs, neck((x,))):
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.1)


def test_built_by_name_and_initialised_as_released():
    neck = MMENGINE_MODELS.build(dict(type='mmvisattn.SimpleFPN', in_channels=64, out_channels=128, num_outs=5))
    neck.init_weights()
    for kernel, convs in ((1, neck.lateral_convs), (3, neck.fpn_convs)):
        for part in convs:
            assert part.conv.weight.std().item() == pytest.approx((2 / (128 * kernel**2)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    'argument, message',
    [
        (dict(in_channels=30), '`in_channels` is 30; it must be a multiple of 4'),
        (dict(in_channels=32, start_level=4), '`start_level` is 4'),
        (dict(in_channels=32, num_outs=0), '`num_outs` is 0'),
    ],
)
def test_wrong_argument_is_answered(argument, message):
    with pytest.raises(UserError, match=message):
        SimpleFPN(**argument)


def test_more_than_one_map_is_refused():
    x = torch.randn(1, 16, 8, 8)
    with pytest.raises(UserError, match='takes one map and was given 2; set `out_indices`'):
        build()((x, x))
