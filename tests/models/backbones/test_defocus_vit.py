from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusViT
from mmvisattn.models.layers.patch_sequence import to_map
from mmvisattn.testing import naive_attention, turned

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

TINY = dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('decay', [True, False])
@pytest.mark.parametrize('rotation', [True, False])
def test_network_equals_the_formulas(causal, decay, rotation):
    torch.manual_seed(0)
    net = DefocusViT(TINY, 'window', 64, 3.0, 1.5, causal, decay, rotation).double()
    for param in net.parameters():
        nn.init.normal_(param, std=0.2)
    size = (70, 110) if causal else (64, 128)  # with and without padding
    x = torch.randn(2, 3, *size, dtype=torch.double)
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


def test_without_causality_padded_windows_are_refused():
    options = dict(pretrain_size=64, causal=False)
    with pytest.raises(UserError, match='64×70 pixels.*set `token_order=.raster.`, or .* multiples of .*64'):
        DefocusViT(TINY, **options)(torch.randn(1, 3, 64, 70))
    assert DefocusViT(TINY, token_order='raster', **options)(torch.randn(1, 3, 64, 70))[0].shape == (1, 32, 4, 5)


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
