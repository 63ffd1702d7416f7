"""Cases for the Triton kernels, on a GPU or in Triton's interpreter; run by test_selective_scan_triton.py."""

from functools import partial

from mmvisattn.ops import triton_support
from mmvisattn.ops.selective_scan import available_backends, selective_scan, triton_backend

import pytest
import torch

from tests.golden import load
from tests.ops.scan_cases import NAMES, assert_close, gradients, make_inputs

scan = partial(selective_scan, backend='triton')


def reference_gradients(inputs, grad_y):
    return gradients(partial(selective_scan, backend='reference'), [x.double() for x in inputs], grad_y.double())


def on_device(inputs):
    return [x.to(triton_support.DEVICE) for x in inputs]


@pytest.fixture
def set_segments(monkeypatch):
    """Forces the number of parts into which sequences are cut."""
    return lambda number: monkeypatch.setattr(triton_backend, '_segments', lambda *_: number)


def test_available():
    assert available_backends()['triton'] is None


@pytest.mark.parametrize(
    'sizes, segments, dtype',
    [
        # batch, dim, length, state
        ((1, 1, 1, 1), 1, torch.float32),
        ((2, 5, 32, 3), 1, torch.float32),
        ((1, 9, 67, 16), 1, torch.float32),
        ((1, 3, 67, 16), 3, torch.float32),
        ((2, 3, 65, 20), 2, torch.float32),
        ((1, 9, 45, 16), 1, torch.float64),
        ((1, 3, 129, 2), 4, torch.float64),
    ],
)
def test_equals_the_recurrence(set_segments, sizes, segments, dtype):
    set_segments(segments)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    inputs = make_inputs(*sizes, dtype)
    grad_y = torch.randn(sizes[:3], generator=torch.Generator().manual_seed(1)).to(dtype)
    expected_y, expected = reference_gradients(inputs, grad_y)
    y, grads = gradients(scan, on_device(inputs), grad_y)
    assert y.dtype == dtype and y.transpose(1, 2).is_contiguous()
    assert_close(y, expected_y, tolerance)
    for a, e in zip(grads, expected):
        assert a.dtype == dtype
        assert_close(a, e, tolerance)


def test_gradcheck(set_segments):
    set_segments(2)
    inputs = [x.requires_grad_() for x in on_device(make_inputs(1, 1, 33, 1, torch.float64))]
    inputs[1] = inputs[1].detach()  # every entry costs two runs; the others are enough next to the cases above
    assert torch.autograd.gradcheck(scan, inputs, fast_mode=True)


def test_golden():
    arrays = {key: torch.from_numpy(value) for key, value in load('selective_scan_B2_D8_L37_N16').items()}
    y, grads = gradients(scan, on_device([arrays[name] for name in NAMES]), arrays['gy'])
    assert_close(y, arrays['y_f64'], 5e-6)
    for name, grad in zip(NAMES, grads):
        assert_close(grad, arrays[f'grad_{name}_f64'], 5e-6)


@pytest.mark.parametrize('types', [[torch.bfloat16] * 5, [torch.float16] * 5, [torch.bfloat16, *[torch.float32] * 4]])
def test_half_precision_has_a_float32_state(types):
    inputs = [x.to(dtype) for x, dtype in zip(make_inputs(1, 3, 40, 4), types)]
    grad_y = torch.randn(1, 3, 40, generator=torch.Generator().manual_seed(1)).to(types[0])
    y, grads = gradients(scan, on_device(inputs), grad_y)
    expected_y, expected = reference_gradients(inputs, grad_y)
    assert y.dtype == types[0]
    # the interpreter cuts off where it makes bfloat16, a GPU rounds
    ulp = 1.01 if triton_support.INTERPRETED else 0.51
    assert_close(y, expected_y, ulp * torch.finfo(y.dtype).eps)
    for x, a, e in zip(inputs, grads, expected):
        assert a.dtype == x.dtype
        assert_close(a, e, max(ulp * torch.finfo(a.dtype).eps, 5e-6))


def test_memory_layout_does_not_matter():
    inputs = on_device(make_inputs(2, 5, 35, 2))
    y, grads = gradients(scan, inputs, inputs[0])
    moved = [x.mT.contiguous().mT for x in inputs]
    assert not any(x.is_contiguous() for x in moved)
    moved_y, moved_grads = gradients(scan, moved, moved[0])
    assert torch.equal(y, moved_y)
    for grad, moved_grad in zip(grads, moved_grads):
        assert_close(moved_grad, grad, 1e-6)


@pytest.mark.parametrize('scale', [1e5, -0.2])
def test_extreme_decays(scale):
    u, delta, A, B, C = make_inputs(1, 3, 40, 4)
    inputs = [u, delta + 0.5, scale * A - max(scale, 0) / 10, B, C]
    expected_y, expected = reference_gradients(inputs, u)
    y, grads = gradients(scan, on_device(inputs), u)
    assert_close(y, expected_y, 5e-6)
    for a, e in zip(grads, expected):
        assert_close(a, e, 5e-6) if e.any() else assert_close(a + 1, e + 1, 1e-12)


def test_every_result_is_written_and_nothing_else_is_read(set_segments):
    """With NaN in all fresh memory, and bit for bit the same twice in deterministic mode."""
    set_segments(2)
    inputs = on_device(make_inputs(1, 5, 35, 16))
    expected_y, expected = gradients(scan, inputs, inputs[0])
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        y, grads = gradients(scan, inputs, inputs[0])
        _, again = gradients(scan, inputs, inputs[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(y, expected_y)
    for a, b, e in zip(grads, again, expected):
        assert torch.equal(a, b)
        assert_close(a, e, 1e-6)


def test_nan_goes_where_it_must_and_nowhere_else(set_segments):
    set_segments(2)
    inputs = on_device(make_inputs(1, 5, 42, 16))
    clean = scan(*inputs)
    inputs[0][0, 3, 40] = float('nan')
    y = scan(*inputs)
    expected = torch.zeros(y.shape, dtype=torch.bool)
    expected[0, 3, 40:] = True
    assert torch.equal(y.isnan().cpu(), expected)
    assert torch.equal(y[~y.isnan()], clean[~y.isnan()])


def test_empty_inputs():
    for sizes in ((0, 5, 7, 4), (2, 5, 0, 4), (2, 0, 7, 4)):
        inputs = on_device(make_inputs(*sizes))
        y, grads = gradients(scan, inputs, torch.ones(sizes[:3]))
        assert y.shape == sizes[:3]
        assert all(grad.shape == x.shape and not grad.any() for x, grad in zip(inputs, grads))
