import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, deform_conv2d, modulated_deform_conv2d

from tests.compat.mmcv_ext.devices import DEVICES
from tests.golden import load


def reference(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """Samples of each kernel point by ``grid_sample``, then one product with the weight."""
    batch, channels, height, width = x.shape
    out_channels, _, kernel_y, kernel_x = weight.shape
    rows, columns = offset.shape[2:]
    offset = offset.view(batch, deform_groups, kernel_y * kernel_x, 2, rows, columns)
    base_y = torch.arange(rows, dtype=x.dtype)[:, None] * stride[0] - padding[0]
    base_x = torch.arange(columns, dtype=x.dtype)[None] * stride[1] - padding[1]
    parts = x.view(batch, deform_groups, channels // deform_groups, height, width)
    samples = []
    for point in range(kernel_y * kernel_x):
        part = []
        for group in range(deform_groups):
            y = base_y + point // kernel_x * dilation[0] + offset[:, group, point, 0]
            x_ = base_x + point % kernel_x * dilation[1] + offset[:, group, point, 1]
            grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], -1)
            sampled = F.grid_sample(parts[:, group], grid, padding_mode='zeros', align_corners=False)
            if mask is not None:
                sampled = sampled * mask[:, group * kernel_y * kernel_x + point, None]
            part.append(sampled)
        samples.append(torch.cat(part, 1))
    samples = torch.stack(samples, 2)  # (B, C, points, rows, columns)
    samples = samples.view(batch, groups, -1, rows * columns)
    output = torch.einsum('gok,bgkn->bgon', weight.view(groups, out_channels // groups, -1), samples)
    output = output.reshape(batch, out_channels, rows, columns)
    return output if bias is None else output + bias[:, None, None]


CASES = [
    # stride, padding, dilation, groups, deform groups
    ((1, 1), (1, 1), (1, 1), 1, 1),
    ((2, 1), (1, 2), (1, 2), 2, 1),
    ((1, 2), (0, 1), (2, 1), 1, 4),
    ((1, 1), (1, 1), (1, 1), 4, 2),
]


def inputs(stride, padding, dilation, groups, deform_groups, batch=4):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    height, width = 9, 11
    rows = (height + 2 * padding[0] - 2 * dilation[0] - 1) // stride[0] + 1
    columns = (width + 2 * padding[1] - 2 * dilation[1] - 1) // stride[1] + 1
    x = randn(batch, 8, height, width)
    offset = randn(batch, deform_groups * 18, rows, columns) * 2
    mask = randn(batch, deform_groups * 9, rows, columns).sigmoid()
    return x, offset, mask, randn(12, 8 // groups, 3, 3), randn(12)


def gradients(output, tensors, weight):
    return torch.autograd.grad((output * weight.to(output)).sum(), tensors)


@pytest.mark.parametrize('device', DEVICES)
def test_golden(device):
    data = {key: torch.from_numpy(array).to(device) for key, array in load('mmcv_ops').items()}
    x, offset, weight = (data[key].requires_grad_() for key in ('dc_x', 'dc_off', 'dc_w'))
    y = deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1)
    y.square().mean().backward()
    found = dict(dc_y=y.detach(), dc_gx=x.grad, dc_goff=offset.grad, dc_gw=weight.grad)
    for key, value in found.items():
        torch.testing.assert_close(value, data[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.parametrize('device', DEVICES)
def test_golden_modulated(device):
    data = {key: torch.from_numpy(array).to(device) for key, array in load('mmcv_ops').items()}
    names = ('dc_x', 'dc_off', 'dc_mask', 'dc_w', 'mdc_bias')
    x, offset, mask, weight, bias = (data[key].requires_grad_() for key in names)
    y = modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1, 1, 1, 1)
    y.square().mean().backward()
    found = dict(mdc_y=y.detach(), mdc_gx=x.grad, mdc_goff=offset.grad, mdc_gmask=mask.grad, mdc_gw=weight.grad)
    found['mdc_gb'] = bias.grad
    for key, value in found.items():
        torch.testing.assert_close(value, data[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('im2col_step', [1, 2, 32])
@pytest.mark.parametrize('case', CASES)
def test_equals_reference(case, im2col_step, device):
    x, offset, _, weight, _ = inputs(*case)
    tensors = [tensor.requires_grad_() for tensor in (x, offset, weight)]
    expected = reference(x, offset, None, weight, None, *case)
    factor = torch.randn(expected.shape, dtype=torch.float64)

    mine = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    y = deform_conv2d(*mine, *case, False, im2col_step)
    torch.testing.assert_close(y.detach().cpu(), expected.detach())
    for grad, wanted in zip(gradients(y, mine, factor), gradients(expected, tensors, factor)):
        torch.testing.assert_close(grad.cpu(), wanted)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_modulated_equals_reference(case, with_bias, device):
    x, offset, mask, weight, bias = inputs(*case)
    tensors = [tensor.requires_grad_() for tensor in (x, offset, mask, weight, *([bias] if with_bias else []))]
    expected = reference(x, offset, mask, weight, bias if with_bias else None, *case)
    factor = torch.randn(expected.shape, dtype=torch.float64)

    mine = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    y = modulated_deform_conv2d(*mine, *([] if with_bias else [None]), *case)
    torch.testing.assert_close(y.detach().cpu(), expected.detach())
    for grad, wanted in zip(gradients(y, mine, factor), gradients(expected, tensors, factor)):
        torch.testing.assert_close(grad.cpu(), wanted)


def test_weight_gradient_alone_and_repeated():
    # The weight's gradient is kept from one call to the next; it must be neither stale nor counted twice.
    x, offset, _, weight, _ = inputs(*CASES[0])
    factor = torch.randn(4, 12, 9, 11, dtype=torch.float64)
    weight.requires_grad_()
    alone = gradients(deform_conv2d(x, offset, weight, 1, 1), [weight], factor)[0]
    x.requires_grad_()
    y = deform_conv2d(x, offset, weight, 1, 1)
    for scale in (1, 3):
        (y * factor * scale).sum().backward(retain_graph=True)
        torch.testing.assert_close(weight.grad, alone * scale)
        weight.grad = None


def test_no_offset_is_a_convolution():
    x, offset, _, weight, _ = inputs(*CASES[1])
    stride, padding, dilation, groups, deform_groups = CASES[1]
    y = deform_conv2d(x, torch.zeros_like(offset), weight, stride, padding, dilation, groups, deform_groups)
    torch.testing.assert_close(y, F.conv2d(x, weight, None, stride, padding, dilation, groups))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('modulated', [False, True])
def test_reduced_precision(modulated, dtype):
    x, offset, mask, weight, _ = (tensor.to(dtype) for tensor in inputs(*CASES[3]))
    tensors = [tensor.requires_grad_() for tensor in ((x, offset, mask, weight) if modulated else (x, offset, weight))]
    convolve = modulated_deform_conv2d if modulated else deform_conv2d
    arguments = ([None] if modulated else []) + list(CASES[3])
    y = convolve(*tensors, *arguments)
    y.sum().backward()
    assert y.dtype == dtype and all(tensor.grad.dtype == dtype for tensor in tensors)
    expected = convolve(*(tensor.detach().double() for tensor in tensors), *arguments)
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('layer', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_layer_trains(layer):
    torch.manual_seed(0)
    conv = layer(8, 12, 3, padding=1)
    conv(torch.randn(2, 8, 9, 11)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in conv.parameters())
