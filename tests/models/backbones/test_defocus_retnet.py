from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusRetNet
from mmvisattn.models.layers.patch_sequence import to_map
from mmvisattn.testing import quadratic_retention, turned

import pytest
import torch
import torch.nn.functional as F
from torch import nn

TINY = dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)


@pytest.mark.parametrize('decay', [True, False])
@pytest.mark.parametrize('rotation', [True, False])
def test_network_equals_the_formulas(decay, rotation):
    torch.manual_seed(0)
    net = DefocusRetNet(TINY, 'window', 64, 3.0, 1.5, decay, rotation).double()
    for param in net.parameters():
        nn.init.normal_(param, std=0.2)
    x = torch.randn(2, 3, 70, 110, dtype=torch.double)
    tokens = net.patch_embed(x)
    for block in net.blocks:
        attn, normed = block.attn, block.norm1(tokens)
        q, k, v = (t.view(2, -1, 2, 16).transpose(1, 2) for t in attn.qkv(normed).chunk(3, -1))
        if rotation:
            q, k = (turned(t, attn.bandpass.freq, 3.0) for t in (q, k))
        rate = -torch.exp(attn.bandpass.log_decay) / 1.5 if decay else torch.zeros(2)
        out = quadratic_retention(q / 4, k, v, rate)
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
