"""Images of other than three channels."""

import logging

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusViT, FlexViT

import pytest
import torch
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.models.networks import BACKBONES, build

all_backbones = pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)


def load(network, weights, path, **changes):
    torch.save(dict(state_dict=weights), path)
    return build(network, seed=1, init_cfg=dict(type='Pretrained', checkpoint=str(path)), **changes)


@pytest.fixture
def logged(monkeypatch):
    """What the backbones log while they load."""
    lines = []
    monkeypatch.setattr(
        'mmvisattn.models.backbones.base_backbone.print_log',
        lambda text, logger, level=logging.INFO: lines.append(text),
    )
    return lines


@all_backbones
@pytest.mark.parametrize('channels', [1, 4, 6])
def test_weights_for_rgb_are_fitted_as_by_timm_and_it_is_told(network, channels, tmp_path, logged):
    source = build(network)
    target = load(network, source.state_dict(), tmp_path / 'rgb.pth', in_channels=channels)
    names = network.patch_weight, *network.other_image_weights
    assert logged == [f'{network.__name__}: {name}: 3 input channels fitted to {channels}' for name in names]
    weights = source.state_dict()
    expected = weights | {name: adapt_input_conv(channels, weights[name]) for name in names}
    assert all(expected[name].shape[1] == channels for name in names)
    assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())
    outs = target(torch.randn(1, channels, 70, 40))
    assert [out.shape for out in outs] == [out.shape for out in source(torch.randn(1, 3, 70, 40))]


@all_backbones
def test_a_picture_in_grey_gives_what_it_gives_as_rgb(network, tmp_path):
    source = build(network)
    target = load(network, source.state_dict(), tmp_path / 'rgb.pth', in_channels=1)
    x = torch.randn(1, 1, 70, 40)
    torch.testing.assert_close(target(x), source(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@all_backbones
@pytest.mark.parametrize('channels', [1, 4])
def test_own_weights_come_back_as_they_were(network, channels, tmp_path, logged):
    source = build(network, in_channels=channels)
    target = load(network, source.state_dict(), tmp_path / 'own.pth', in_channels=channels)
    assert logged == []
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())
    whole = nn.ModuleDict(dict(backbone=source))
    target = load(network, whole.state_dict(), tmp_path / 'whole.pth', in_channels=channels)
    assert torch.equal(target.state_dict()[network.patch_weight], source.state_dict()[network.patch_weight])


@all_backbones
def test_weights_for_other_channels_are_refused(network, tmp_path):
    weights = build(network, in_channels=4).state_dict()
    with pytest.raises(UserError, match=r'for images of 4 channels and .* for 3; set `in_channels=4`'):
        load(network, weights, tmp_path / 'four.pth')


@pytest.mark.parametrize('network', [DefocusViT, FlexViT])
@pytest.mark.parametrize('channels', [1, 4])
def test_weights_of_timm(network, channels, tmp_path):
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2)
    target = load(network, vit.state_dict(), tmp_path / 'vit.pth', in_channels=channels)
    expected = adapt_input_conv(channels, vit.patch_embed.proj.weight.detach())
    assert torch.equal(target.state_dict()[network.patch_weight], expected)


@all_backbones
@pytest.mark.parametrize('channels', [3, 4])
def test_images_of_other_channels_are_refused(network, channels):
    with pytest.raises(UserError, match=rf'\(B, {channels}, H, W\); it was given \(1, 2, 64, 64\); set `in_channels`'):
        build(network, in_channels=channels)(torch.randn(1, 2, 64, 64))
