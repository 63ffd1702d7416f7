import itertools
import math

import pytest
import torch
import torchvision
from mmcv.ops import RoIAlign, roi_align

from tests.compat.mmcv_ext.devices import DEVICES
from tests.golden import load

# Index in the batch and corners: inside, over each edge, far outside, thin, and as large as the image.
ROIS = [
    [0, 3.3, 5.1, 20.7, 31.2],
    [1, -9.0, -4.5, 12.2, 8.8],
    [1, 30.1, 20.2, 90.0, 60.0],
    [0, 200.0, 210.0, 240.0, 250.0],
    [0, 10.0, 10.0, 10.5, 30.0],
    [1, 0.0, 0.0, 48.0, 40.0],
]
SCALE = 0.25


def bilinear(plane, y, x):
    height, width = plane.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(len(plane))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    below = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return above * (1 - dy) + below * dy


def reference(x, rois, size, scale, sampling_ratio, mode, aligned):
    bins_y, bins_x = size
    shift = 0.5 if aligned else 0.0
    output = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (value * scale - shift for value in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        count_y = sampling_ratio or math.ceil(height / bins_y)
        count_x = sampling_ratio or math.ceil(width / bins_x)
        for bin_y, bin_x in itertools.product(range(bins_y), range(bins_x)):
            samples = [
                bilinear(
                    x[int(index)],
                    y1 + (bin_y + (i + 0.5) / count_y) * height / bins_y,
                    x1 + (bin_x + (j + 0.5) / count_x) * width / bins_x,
                )
                for i, j in itertools.product(range(count_y), range(count_x))
            ]
            stack = torch.stack(samples)
            output.append(stack.mean(0) if mode == 'avg' else stack.amax(0))
    return torch.stack(output).view(len(rois), bins_y, bins_x, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('name', 'sampling_ratio', 'mode', 'aligned'),
    [
        ('al1_sr0', 0, 'avg', True),
        ('al1_sr2', 2, 'avg', True),
        ('al0_sr0', 0, 'avg', False),
        ('al0_sr2', 2, 'avg', False),
        ('max', 2, 'max', True),
    ],
)
def test_golden(name, sampling_ratio, mode, aligned, device):
    data = {key: torch.from_numpy(array) for key, array in load('mmcv_ops').items()}
    x = data['roi_x'].to(device).requires_grad_()
    y = roi_align(x, data['rois'].to(device), (7, 5), 0.25, sampling_ratio, mode, aligned)
    y.square().sum().backward()
    torch.testing.assert_close(y.detach().cpu(), data[f'roi_align_{name}'], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.cpu(), data[f'roi_align_{name}_grad'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 3])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_equals_reference_in_float64(mode, sampling_ratio, aligned, device):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 12, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    expected = reference(x, rois, (3, 2), SCALE, sampling_ratio, mode, aligned)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()

    mine = x.detach().to(device).requires_grad_()
    y = roi_align(mine, rois.to(device), (3, 2), SCALE, sampling_ratio, mode, aligned)
    (y * weight.to(device)).sum().backward()
    torch.testing.assert_close(y.detach().cpu(), expected.detach())
    torch.testing.assert_close(mine.grad.cpu(), x.grad)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_no_boxes(mode):
    x = torch.randn(2, 3, 10, 12, requires_grad=True)
    y = roi_align(x, torch.zeros(0, 5), (3, 2), SCALE, 0, mode, True)
    y.sum().backward()
    assert y.shape == (0, 3, 3, 2)
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_box_without_area_is_zero(mode):
    x = torch.randn(1, 3, 10, 12, requires_grad=True)
    y = roi_align(x, torch.tensor([[0, 8.0, 8.0, 8.0, 8.0]]), (3, 2), SCALE, 0, mode, True)
    y.sum().backward()
    assert not y.any() and not x.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_reduced_precision(mode, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 12).to(dtype).requires_grad_()
    rois = torch.tensor(ROIS).round().to(dtype)
    y = roi_align(x, rois, (3, 2), SCALE, 2, mode, True)
    y.float().sum().backward()
    expected = roi_align(x.detach().float(), rois.float(), (3, 2), SCALE, 2, mode, True)
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)


def test_module_in_a_batch_of_many_sizes():
    # Hundreds of windows of unequal size go through a handful of groups; each box must keep its place.
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(200, 2, generator=generator) * 100
    sizes = torch.rand(200, 2, generator=generator).pow(3) * 100 + 0.1
    index = torch.randint(0, 2, (200, 1), generator=generator)
    rois = torch.cat([index, corners, corners + sizes], 1)
    x = torch.randn(2, 2, 30, 30, generator=generator)
    pool = RoIAlign((2, 2), 0.25, 0, 'max')
    together = pool(x, rois)
    alone = torch.cat([pool(x, roi[None]) for roi in rois])
    assert torch.equal(together, alone)
    assert together.unique().numel() > 200


@pytest.mark.parametrize('sampling_ratio', [0, 1, 2])
def test_gradient_equals_that_of_torchvision(sampling_ratio):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 20, 27, dtype=torch.float64, requires_grad=True)
    centres, sides = torch.rand(60, 2) * torch.tensor([130.0, 100.0]) - 10, torch.rand(60, 2) * 90 - 5
    rois = torch.cat([torch.randint(3, (60, 1)), centres - sides / 2, centres + sides / 2], 1).double()
    mask = torch.randn(60, 4, 3, 5, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((pooled * mask).sum(), x)[0]
        for pooled in (
            roi_align(x, rois, (3, 5), 0.25, sampling_ratio, 'avg', True),
            torchvision.ops.roi_align(x, rois, (3, 5), 0.25, sampling_ratio, True),
        )
    ]
    torch.testing.assert_close(*gradients)
