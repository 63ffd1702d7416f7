"""The supplied operators beside those of a compiled mmcv, where there is one: `make test-compiled`."""

import itertools

from mmvisattn.compat import mmcv_ext

import pytest
import torch
from mmcv.ops import deform_conv2d, modulated_deform_conv2d, nms, nms_match, roi_align, soft_nms

from tests.compat.mmcv_ext.conftest import use
from tests.compat.mmcv_ext.test_deform_conv import CASES, inputs
from tests.compat.mmcv_ext.test_nms import METHODS, random_boxes

# Roi pooling, deformable attention and the focal losses of a compiled mmcv run on CUDA alone.
pytestmark = pytest.mark.skipif(not mmcv_ext.compiled(), reason='needs a compiled mmcv: make test-compiled')


@pytest.fixture
def both(monkeypatch, supplied):
    """Calls a function on compiled and on supplied operators."""
    import mmcv._ext as compiled

    def call(function):
        results = []
        for ext in (compiled, supplied):
            use(monkeypatch, ext)
            results.append(function())
        return results

    return call


def with_gradients(operator, *tensors):
    """Output and gradients of an operator, by a seeded direction."""

    def function():
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        y = operator(*leaves)
        torch.manual_seed(0)
        return [y.detach(), *torch.autograd.grad((y * torch.randn_like(y)).sum(), leaves)]

    return function


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
def test_nms(threshold, offset, both):
    for seed in range(20):
        boxes, scores = random_boxes(100, seed, size=15.0)
        compiled, mine = both(lambda: nms(boxes, scores, threshold, offset=offset))  # noqa: B023
        assert 1 < len(compiled[1]) < 100
        assert torch.equal(compiled[1], mine[1]) and torch.equal(compiled[0], mine[0])


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('min_score', [0.0, 0.05, 0.3])
def test_soft_nms(min_score, method, both):
    for seed in range(10):
        boxes, scores = random_boxes(60, seed, size=30.0)
        compiled, mine = both(lambda: soft_nms(boxes, scores, 0.3, 0.5, min_score, method))  # noqa: B023
        assert torch.equal(compiled[1], mine[1])
        torch.testing.assert_close(compiled[0], mine[0], rtol=1e-6, atol=1e-6)


def test_nms_match(both):
    for seed in range(10):
        boxes, scores = random_boxes(60, seed, size=15.0)
        dets = torch.cat([boxes, scores[:, None]], 1)
        compiled, mine = both(lambda: nms_match(dets, 0.4))  # noqa: B023
        assert [group.tolist() for group in compiled] == [group.tolist() for group in mine]


@pytest.mark.parametrize(
    ('mode', 'aligned', 'sampling_ratio'), [*itertools.product(['avg', 'max'], [True, False], [0, 1, 2])]
)
def test_roi_align(mode, aligned, sampling_ratio, both):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 20, 27, dtype=torch.float64)
    centres, sides = torch.rand(60, 2) * torch.tensor([130.0, 100.0]) - 10, torch.rand(60, 2) * 90
    rois = torch.cat([torch.randint(3, (60, 1)), centres - sides / 2, centres + sides / 2], 1).double()
    operator = with_gradients(lambda x: roi_align(x, rois, (3, 5), 0.25, sampling_ratio, mode, aligned), x)
    for compiled, mine in zip(*both(operator)):
        torch.testing.assert_close(compiled, mine)


@pytest.mark.parametrize('case', CASES)
def test_deform_conv(case, both):
    x, offset, _, weight, _ = inputs(*case)
    operator = with_gradients(lambda x, offset, weight: deform_conv2d(x, offset, weight, *case), x, offset, weight)
    for compiled, mine in zip(*both(operator)):
        torch.testing.assert_close(compiled, mine)


@pytest.mark.parametrize('case', CASES)
def test_modulated_deform_conv(case, both):
    operator = with_gradients(lambda *tensors: modulated_deform_conv2d(*tensors, *case), *inputs(*case))
    for compiled, mine in zip(*both(operator)):
        torch.testing.assert_close(compiled, mine)
