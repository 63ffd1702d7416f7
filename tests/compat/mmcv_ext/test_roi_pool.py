import itertools
import math

import pytest
import torch
from mmcv.ops import RoIPool, roi_pool

from tests.compat.mmcv_ext.devices import DEVICES

ROIS = [
    [0, 3.3, 5.1, 20.7, 31.2],
    [1, -9.0, -4.5, 12.2, 8.8],
    [1, 30.1, 20.2, 90.0, 60.0],
    [0, 200.0, 210.0, 240.0, 250.0],
    [0, 10.0, 10.0, 10.5, 30.0],
    [1, 20.0, 20.0, 10.0, 10.0],
    [1, 0.0, 0.0, 48.0, 40.0],
]


def reference(x, rois, size, scale):
    bins_y, bins_x = size
    height, width = x.shape[2:]
    output = []
    for index, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        step_y, step_x = (y2 - y1) / bins_y, (x2 - x1) / bins_x
        for bin_y, bin_x in itertools.product(range(bins_y), range(bins_x)):
            top, bottom = math.floor(bin_y * step_y + y1), math.ceil((bin_y + 1) * step_y + y1)
            left, right = math.floor(bin_x * step_x + x1), math.ceil((bin_x + 1) * step_x + x1)
            top, bottom = (min(max(value, 0), height) for value in (top, bottom))
            left, right = (min(max(value, 0), width) for value in (left, right))
            window = x[int(index), :, top:bottom, left:right].flatten(1)
            empty = step_y <= 0 or step_x <= 0 or not window.numel()
            output.append(x.new_zeros(x.size(1)) if empty else window.amax(1))
    return torch.stack(output).view(len(rois), bins_y, bins_x, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('size', 'scale'), [((3, 2), 0.25), ((2, 5), 0.5), ((1, 1), 0.25)])
def test_equals_reference_in_float64(size, scale, device):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 12, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    expected = reference(x, rois, size, scale)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()

    mine = x.detach().to(device).requires_grad_()
    y = roi_pool(mine, rois.to(device), size, scale)
    (y * weight.to(device)).sum().backward()
    assert torch.equal(y.detach().cpu(), expected.detach())
    torch.testing.assert_close(mine.grad.cpu(), x.grad)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_other_types(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 12).to(dtype).requires_grad_()
    rois = torch.tensor(ROIS).round().to(dtype)
    y = RoIPool((3, 2), 0.25)(x, rois)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y.double(), reference(x.detach().double(), rois.double(), (3, 2), 0.25))


def test_no_boxes():
    x = torch.randn(2, 3, 10, 12, requires_grad=True)
    y = roi_pool(x, torch.zeros(0, 5), (3, 2), 0.25)
    y.sum().backward()
    assert y.shape == (0, 3, 3, 2)
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_large_set_is_cut_to_bounded_memory(monkeypatch):
    torch.manual_seed(0)
    x, rois = torch.randn(2, 3, 10, 12), torch.tensor(ROIS)
    expected = roi_pool(x, rois, (3, 2), 0.25)
    from mmvisattn.compat.mmcv_ext import _boxes

    monkeypatch.setattr(_boxes, '_BUDGET', 1)
    assert torch.equal(roi_pool(x, rois, (3, 2), 0.25), expected)
