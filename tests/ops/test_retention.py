from unittest.mock import Mock

from mmvisattn.ops import decay, retention
from mmvisattn.ops.decay import MAX_EXPONENT
from mmvisattn.ops.retention import CHUNK, chunkwise_retention
from mmvisattn.testing import LargestTensor, attention_inputs, quadratic_retention

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(params=['factors', 'pairs'])
def form(request, monkeypatch):
    """How retention decays within a chunk: as factors of queries and keys, or pair by pair."""
    if request.param == 'pairs':
        monkeypatch.setattr(decay, 'MAX_EXPONENT', -1.0)
    monkeypatch.setattr(retention, 'decay_factors', (calls := Mock(side_effect=decay.decay_factors)))
    yield
    assert calls.called == (request.param == 'factors')


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('length, chunk', [(1, 8), (7, 8), (8, 8), (37, 8), (37, 1), (64, 16)])
def test_chunk_by_chunk_equals_the_quadratic_form(length, chunk):
    inputs = attention_inputs(length)
    out, expected = chunkwise_retention(*inputs, chunk), quadratic_retention(*inputs)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(out)
    ours, theirs = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.usefixtures('form')
def test_second_derivatives():
    assert torch.autograd.gradgradcheck(lambda *inputs: chunkwise_retention(*inputs, 3), attention_inputs(5))


@pytest.mark.usefixtures('form')
def test_no_token_sees_a_later_one_to_the_bit():
    inputs = attention_inputs(37)
    out = chunkwise_retention(*inputs, 8)
    for t in range(37):
        q, k, v, rate = (x.detach().clone() for x in inputs)
        k[:, :, t] += 1
        v[:, :, t] -= 1
        changed = chunkwise_retention(q, k, v, rate, 8)
        assert torch.equal(changed[:, :, :t], out[:, :, :t])
        assert (changed[:, :, t] != out[:, :, t]).all()


@pytest.mark.parametrize('fastest', [-1e3, -2 * MAX_EXPONENT / CHUNK])  # too fast for factors; just not
def test_fast_and_slow_decay_give_finite_values_and_gradients(fastest):
    q, k, v, _ = attention_inputs(300)
    q, k, v = (x.detach().float().requires_grad_() for x in (q, k, v))
    rate = torch.tensor([fastest, -1e-7, fastest / 200], requires_grad=True)
    out = chunkwise_retention(q, k, v, rate)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(out.square().sum(), (q, k, v, rate)))
    expected = quadratic_retention(*(x.double() for x in (q, k, v, rate)))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_half_precision_inputs_are_summed_in_float32():
    q, k, v, rate = (x.detach() for x in attention_inputs(40))
    halves = [x.bfloat16() for x in (q, k, v)]
    out = chunkwise_retention(*halves, rate.float(), 8)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, chunkwise_retention(*(x.float() for x in halves), rate.float(), 8))


@pytest.mark.usefixtures('form')
def test_cost_is_linear_in_the_length():
    flops, largest = {}, {}
    for length in (128, 1024):
        inputs = attention_inputs(length)
        with FlopCounterMode(display=False) as counter, LargestTensor() as mode:
            chunkwise_retention(*inputs, 16).sum().backward()
        flops[length], largest[length] = counter.get_total_flops(), mode.largest
    assert flops[1024] == 8 * flops[128] > 0
    assert largest[1024] == 8 * largest[128]


def test_autocast_leaves_the_types_alone():
    inputs = [x.detach().float() for x in attention_inputs(40)]
    with torch.autocast('cpu', torch.bfloat16):
        out = chunkwise_retention(*inputs, 8)
    assert torch.equal(out, chunkwise_retention(*inputs, 8))
