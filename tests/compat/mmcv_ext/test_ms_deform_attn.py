import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

from tests.compat.mmcv_ext.devices import DEVICES
from tests.golden import load


def attend(value, shapes, locations, weights):
    start = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return MultiScaleDeformableAttnFunction.apply(value, shapes, start, locations, weights, 64)


def reference(value, shapes, locations, weights):
    """Bilinear sampling written out, one corner after the other."""
    batch, _, heads, _ = value.shape
    total, start = 0, 0
    for level, (height, width) in enumerate(shapes.tolist()):
        # (B, heads, H*W, D)
        plane = value[:, start : start + height * width].transpose(1, 2)
        start += height * width
        x = locations[:, :, :, level, :, 0].transpose(1, 2) * width - 0.5  # (B, heads, Q, points)
        y = locations[:, :, :, level, :, 1].transpose(1, 2) * height - 0.5
        for corner_y in (0, 1):
            for corner_x in (0, 1):
                row, column = y.floor() + corner_y, x.floor() + corner_x
                share = (1 - (y - row).abs()) * (1 - (x - column).abs())
                share = share * weights[:, :, :, level].transpose(1, 2)
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
                index = torch.arange(batch)[:, None, None, None], torch.arange(heads)[:, None, None], place
                total = total + ((share * inside)[..., None] * plane[index]).sum(3)
    return total.transpose(1, 2).flatten(2)  # (B, Q, heads * D)


def inputs(dtype=torch.float64, queries=7):
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[6, 9], [3, 5], [1, 1]])
    value = torch.randn(2, int(shapes.prod(1).sum()), 4, 5, generator=generator, dtype=dtype)
    # Some of the places lie outside the maps.
    locations = torch.rand(2, queries, 4, 3, 2, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.randn(2, queries, 4, 6, generator=generator, dtype=dtype).softmax(-1).view(2, queries, 4, 3, 2)
    return value, shapes, locations, weights


@pytest.mark.parametrize('device', DEVICES)
def test_golden(device):
    data = {key: torch.from_numpy(array).to(device) for key, array in load('mmcv_ops').items()}
    value, locations, weights = (data[key].requires_grad_() for key in ('msda_value', 'msda_loc', 'msda_w'))
    y = attend(value, data['msda_shapes'], locations, weights)
    y.square().sum().backward()
    found = dict(msda_y=y.detach(), msda_gv=value.grad, msda_gloc=locations.grad, msda_gw=weights.grad)
    for key, array in found.items():
        torch.testing.assert_close(array, data[key], rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.parametrize('device', DEVICES)
def test_equals_reference(device):
    value, shapes, locations, weights = inputs()
    tensors = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    expected = reference(value, shapes, locations, weights)
    factor = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * factor).sum(), tensors)

    mine = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    y = attend(mine[0], shapes.to(device), *mine[1:])
    torch.testing.assert_close(y.detach().cpu(), expected.detach())
    for grad, other in zip(torch.autograd.grad((y * factor.to(device)).sum(), mine), wanted):
        torch.testing.assert_close(grad.cpu(), other)


def test_mmcv_own_path_on_the_cpu():
    value, shapes, locations, weights = inputs()
    y = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(y, reference(value, shapes, locations, weights))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_reduced_precision(dtype, device):
    value, shapes, locations, weights = (tensor.to(device) for tensor in inputs(torch.float32))
    value = value.to(dtype).requires_grad_()
    y = attend(value, shapes, locations, weights)
    y.float().sum().backward()
    assert y.dtype == value.grad.dtype == dtype
    expected = attend(value.detach().float(), shapes, locations.to(dtype).float(), weights.to(dtype).float())
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


def test_no_queries():
    value, shapes, locations, weights = inputs(queries=0)
    value.requires_grad_()
    y = attend(value, shapes, locations, weights)
    y.sum().backward()
    assert y.shape == (2, 0, 20)
    assert torch.equal(value.grad, torch.zeros_like(value))


@pytest.mark.parametrize('device', DEVICES)
def test_module_trains(device):
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(32, 4, 2, 3, batch_first=True, dropout=0).to(device)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(layer.attention_weights.weight, std=0.1)
    shapes = torch.tensor([[4, 5], [2, 3]], device=device)
    query, value = torch.randn(2, 6, 32, device=device), torch.randn(2, 26, 32, device=device)
    points = torch.rand(2, 6, 2, 2, device=device)
    start = torch.tensor([0, 20], device=device)
    y = layer(query, value=value, reference_points=points, spatial_shapes=shapes, level_start_index=start)
    y.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
