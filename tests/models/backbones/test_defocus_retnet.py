from unittest.mock import Mock

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusRetNet, defocus_retnet
from mmvisattn.models.backbones.defocus_retnet import CHUNK, chunkwise_retention
from mmvisattn.models.layers import bandpass
from mmvisattn.models.layers.bandpass import MAX_EXPONENT
from mmvisattn.models.layers.patch_sequence import to_map
from mmvisattn.testing import LargestTensor, attention_inputs, quadratic_retention, turned

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

TINY = dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)


@pytest.fixture(params=['factors', 'pairs'])
def decay(request, monkeypatch):
    """How retention decays within a chunk: as factors of queries and keys, or pair by pair."""
    if request.param == 'pairs':
        monkeypatch.setattr(bandpass, 'MAX_EXPONENT', -1.0)
    monkeypatch.setattr(defocus_retnet, 'decay_factors', (calls := Mock(side_effect=bandpass.decay_factors)))
    yield
    assert calls.called == (request.param == 'factors')


@pytest.mark.usefixtures('decay')
@pytest.mark.parametrize('length, chunk', [(1, 8), (7, 8), (8, 8), (37, 8), (37, 1), (64, 16)])
def test_chunk_by_chunk_equals_the_quadratic_form(length, chunk):
    inputs = attention_inputs(length)
    out, expected = chunkwise_retention(*inputs, chunk), quadratic_retention(*inputs)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(out)
    ours, theirs = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.usefixtures('decay')
def test_second_derivatives():
    assert torch.autograd.gradgradcheck(lambda *inputs: chunkwise_retention(*inputs, 3), attention_inputs(5))


@pytest.mark.usefixtures('decay')
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


@pytest.mark.usefixtures('decay')
def test_cost_is_linear_in_the_length():
    flops, largest = {}, {}
    for length in (128, 1024):
        inputs = attention_inputs(length)
        with FlopCounterMode(display=False) as counter, LargestTensor() as mode:
            chunkwise_retention(*inputs, 16).sum().backward()
        flops[length], largest[length] = counter.get_total_flops(), mode.largest
    assert flops[1024] == 8 * flops[128] > 0
    assert largest[1024] == 8 * largest[128]


def test_network_equals_the_formulas():
    torch.manual_seed(0)
    net = DefocusRetNet(TINY, 'window', 64, rope_scale=3.0, delta_scale=1.5).double()
    for param in net.parameters():
        nn.init.normal_(param, std=0.2)
    x = torch.randn(2, 3, 70, 110, dtype=torch.double)
    tokens = net.patch_embed(x)
    for block in net.blocks:
        attn, normed = block.attn, block.norm1(tokens)
        q, k, v = (t.view(2, -1, 2, 16).transpose(1, 2) for t in attn.qkv(normed).chunk(3, -1))
        q, k = (turned(t, attn.bandpass.freq, 3.0) for t in (q, k))
        out = quadratic_retention(q / 4, k, v, -torch.exp(attn.bandpass.log_decay) / 1.5)
        out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        out = out.transpose(1, 2).reshape(tokens.shape)
        tokens = tokens + attn.proj(out * F.silu(attn.gate(normed)))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))
    expected = to_map(net.norm(tokens), *net.patch_embed.layout(x))
    torch.testing.assert_close(net(x)[0], expected)


@pytest.mark.parametrize('arch, dim', [('small', 384), ('base', 768)])
def test_sizes(arch, dim):
    with torch.device('meta'):
        net = DefocusRetNet(arch)
    assert len(net.blocks) == 12 and net.norm.weight.shape == (dim,)
    assert net.blocks[0].attn.bandpass.freq.shape == (32,)
    per_block = 13 * dim**2 + 14 * dim + dim // 64 + 32  # 5 d² of retention and 8 d² of the MLP, biases, norms, filter
    assert sum(param.numel() for param in net.blocks.parameters()) == 12 * per_block


def test_heads_that_do_not_share_the_channels_are_refused():
    with pytest.raises(UserError, match='heads must divide the channels, so that each has a multiple of 2'):
        DefocusRetNet(TINY | dict(num_heads=3))
