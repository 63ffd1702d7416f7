from mmvisattn.ops import decay
from mmvisattn.ops import filtered_attention as module
from mmvisattn.ops.decay import MAX_EXPONENT
from mmvisattn.ops.filtered_attention import blockwise_attention, filtered_attention, folded_attention
from mmvisattn.testing import LargestTensor, attention_inputs, naive_attention

import pytest
import torch


@pytest.mark.parametrize('decay', [True, False])
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('length, block', [(1, 4), (7, 8), (8, 8), (37, 8), (37, 1)])
def test_block_by_block_equals_the_whole_map(length, block, causal, decay):
    q, k, v, rate = inputs = attention_inputs(length, decay)
    out = blockwise_attention(q, k, v, rate, causal, block)
    expected = naive_attention(q, k, v, rate, causal)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    tensors = [x for x in inputs if x is not None]
    torch.testing.assert_close(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad))


@pytest.mark.parametrize('length', [1, 37, 300])
def test_fused_attention_equals_the_whole_map(length):
    inputs = attention_inputs(length)
    inputs[3].data.clamp_(min=-2 * MAX_EXPONENT / length)  # up to the largest factor that is let through
    out = filtered_attention(*inputs)
    expected = naive_attention(*inputs, causal=True)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad))


@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 2e-2)])
def test_fused_attention_in_lower_precision(dtype, rtol):
    torch.manual_seed(0)
    length = 256
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.double) for _ in range(3))
    rate = torch.tensor([-2 * MAX_EXPONENT / length, -0.05, -1e-4], dtype=torch.double)
    inputs = [*(x.to(dtype).requires_grad_() for x in (q, k, v)), rate.float().requires_grad_()]
    out = folded_attention(*inputs)
    expected = naive_attention(*(x.detach().double() for x in inputs[:3]), rate, causal=True)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=rtol)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().square().sum(), inputs))


@pytest.mark.parametrize('case', ['fast decay', 'not causal', 'exported'])
def test_what_fused_attention_cannot_do_goes_block_by_block(case, monkeypatch):
    q, k, v, rate = attention_inputs(40)
    calls = []
    blockwise = lambda *args: (calls.append(1), blockwise_attention(*args))[1]  # noqa: E731
    monkeypatch.setattr(module, 'blockwise_attention', blockwise)
    filtered_attention(q, k, v, rate)
    assert not calls
    if case == 'fast decay':
        rate = torch.tensor([-1e3, -1e-6, -5.0], dtype=torch.double)
    if case == 'exported':
        monkeypatch.setattr(decay, 'is_traced', lambda: True)
    out = filtered_attention(q, k, v, rate, case != 'not causal')
    assert calls and out.isfinite().all()


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('fastest', [-0.05, -5.0])
def test_one_graph_computes_what_eager_does_whatever_the_decay(causal, fastest, monkeypatch):
    """The decay may change after the graph is recorded."""
    torch.compiler.reset()
    graph = torch.compile(filtered_attention, backend='aot_eager', fullgraph=True)
    graph(*attention_inputs(150), causal)
    q, k, v, _ = attention_inputs(150)
    rate = torch.tensor([fastest, -1e-3, -0.02], dtype=torch.double, requires_grad=True)
    inputs, used = (q, k, v, rate), []
    with torch._dynamo.config.patch(error_on_recompile=True):
        out = graph(*inputs, causal)
    for name in ('folded_attention', 'blockwise_attention'):
        function = getattr(module, name)
        note = lambda *args, name=name, function=function, **kw: (used.append(name), function(*args, **kw))[1]  # noqa: E731
        monkeypatch.setattr(module, name, note)
    expected = filtered_attention(*inputs, causal)
    assert used == ['folded_attention' if causal and fastest == -0.05 else 'blockwise_attention']
    grad = torch.randn_like(expected)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad))


def test_fast_decay_gives_finite_gradients():
    q, k, v, _ = attention_inputs(40)
    rate = torch.tensor([-1e3, -1e-6, -5.0], dtype=torch.double, requires_grad=True)
    out = blockwise_attention(q, k, v, rate, block=8)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v, rate))
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize('causal', [True, False])
def test_no_tensor_grows_as_the_square_of_the_length(causal):
    sizes = {}
    for length in (64, 512):
        q, k, v, rate = attention_inputs(length)
        kept = {}  # memory held for the backward, by address

        def keep(x, kept=kept):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
            return x

        with LargestTensor() as mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = blockwise_attention(q, k, v, rate, causal, block=16)
        assert sum(kept.values()) <= q.numel() + k.numel() + v.numel() + rate.numel()
        with mode:
            out.sum().backward()
        sizes[length] = mode.largest
    assert sizes[64] == 2 * 3 * 16 * 64  # a block of the attention map
    assert sizes[512] == 8 * sizes[64]


def test_no_query_sees_a_later_key_to_the_bit():
    inputs = attention_inputs(37)
    out = blockwise_attention(*inputs, block=8)
    for t in range(37):
        q, k, v, rate = (x.detach().clone() for x in inputs)
        k[:, :, t] += 1
        v[:, :, t] -= 1
        changed = blockwise_attention(q, k, v, rate, block=8)
        assert torch.equal(changed[:, :, :t], out[:, :, :t])
        assert (changed[:, :, t:] != out[:, :, t:]).all()
