from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusViT, defocus_vit
from mmvisattn.models.backbones.defocus_vit import blockwise_attention, filtered_attention, folded_attention
from mmvisattn.models.layers import bandpass
from mmvisattn.models.layers.bandpass import MAX_EXPONENT
from mmvisattn.models.layers.patch_sequence import to_map
from mmvisattn.testing import LargestTensor, attention_inputs, naive_attention, turned

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

TINY = dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)


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


@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
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


@pytest.mark.parametrize('case', ['fast decay', 'not causal', 'float16', 'traced'])
def test_what_fused_attention_cannot_do_goes_block_by_block(case, monkeypatch):
    q, k, v, rate = attention_inputs(40)
    calls = []
    blockwise = lambda *args: (calls.append(1), blockwise_attention(*args))[1]  # noqa: E731
    monkeypatch.setattr(defocus_vit, 'blockwise_attention', blockwise)
    filtered_attention(q, k, v, rate)
    assert not calls
    if case == 'fast decay':
        rate = torch.tensor([-1e3, -1e-6, -5.0], dtype=torch.double)
    if case == 'float16':
        q, k, v, rate = (x.detach().half() for x in (q, k, v, rate))
    if case == 'traced':
        monkeypatch.setattr(bandpass, 'is_traced', lambda: True)
    out = filtered_attention(q, k, v, rate, case != 'not causal')
    assert calls and out.isfinite().all()


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


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('decay', [True, False])
@pytest.mark.parametrize('rotation', [True, False])
def test_network_equals_the_formulas(causal, decay, rotation):
    torch.manual_seed(0)
    net = DefocusViT(TINY, 'window', 64, 3.0, 1.5, causal, decay, rotation).double()
    for param in net.parameters():
        nn.init.normal_(param, std=0.2)
    x = torch.randn(2, 3, 70, 110, dtype=torch.double)
    tokens = net.patch_embed(x)
    for block in net.blocks:
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(tokens)).chunk(3, -1)
        q, k, v = (t.view(2, -1, 2, 16).transpose(1, 2) for t in (q, k, v))
        if rotation:
            q, k = (turned(t, attn.bandpass.freq, 3.0) for t in (q, k))
        rate = -torch.exp(attn.bandpass.log_decay) / 1.5 if decay else None
        out = naive_attention(q / 4, k, v, rate, causal)
        tokens = tokens + attn.proj(out.transpose(1, 2).reshape(tokens.shape))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))
    expected = to_map(net.norm(tokens), *net.patch_embed.layout(x))
    torch.testing.assert_close(net(x)[0], expected)


def test_without_causality_the_first_token_sees_the_last():
    x = torch.randn(1, 3, 64, 64)
    changed = x.clone()
    changed[..., 48:, 48:] += 1
    for causal in (True, False):
        net = DefocusViT(TINY, pretrain_size=64, causal=causal).eval()
        assert torch.equal(net(x)[0][..., 0, 0], net(changed)[0][..., 0, 0]) == causal


@pytest.mark.parametrize('arch, name', [('small', 'deit_small_patch16_224'), ('base', 'deit_base_patch16_224')])
def test_names_and_shapes_are_those_of_timms_deit(arch, name):
    with torch.device('meta'):
        net, deit = DefocusViT(arch), timm.create_model(name)
    weights = net.checkpoint_filter(deit.state_dict())
    left_out = {'cls_token', 'pos_embed', 'head.weight', 'head.bias'}
    expected = {key: value.shape for key, value in weights.items() if key not in left_out}
    own = {key: value.shape for key, value in net.state_dict().items() if key not in net.new_keys}
    assert own == expected
    heads = net.blocks[0].attn.num_heads
    assert sum(net.state_dict()[key].numel() for key in net.new_keys) == 12 * (heads + 32)


def test_deit_without_position_embedding_and_class_token_is_the_network_without_filter(tmp_path):
    torch.manual_seed(0)
    sizes = dict(embed_dim=48, depth=2, num_heads=3, img_size=64)
    without = dict(class_token=False, pos_embed='none', global_pool='avg', fc_norm=False)
    deit = timm.create_model('deit_tiny_patch16_224', **sizes, **without).eval()
    nn.init.normal_(deit.norm.bias)
    path = str(tmp_path / 'deit.pth')
    torch.save(dict(model=deit.state_dict()), path)
    net = DefocusViT(
        dict(embed_dims=48, depth=2, num_heads=3, mlp_ratio=4),
        pretrain_size=64,
        causal=False,
        decay=False,
        rotation=False,
        init_cfg=dict(type='Pretrained', checkpoint=path),
    )
    net.init_weights()
    x = torch.randn(2, 3, 64, 64)
    expected = deit.forward_features(x).mT.reshape(2, 48, 4, 4)
    torch.testing.assert_close(net(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('heads', [3, 32])
def test_heads_that_do_not_share_the_channels_are_refused(heads):
    with pytest.raises(UserError, match='heads must divide the channels, so that each has a multiple of 2'):
        DefocusViT(TINY | dict(num_heads=heads))
