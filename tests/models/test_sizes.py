"""Pictures of any shape through backbone and necks."""

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FCViT
from mmvisattn.models.necks import FlexAttentionNeck, SimpleFPN

import pytest
import torch

from tests.models.networks import BACKBONES, build

SIZES = [(1, 1), (1, 2000), (8, 160), (160, 8), (16, 33), (17, 17), (31, 31), (33, 4097), (47, 49), (79, 113)]
PLAIN = [network for network in BACKBONES if network is not FCViT]


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('network', PLAIN, ids=lambda network: network.__name__)
def test_every_level_exists_at_every_size(network, size):
    with torch.no_grad():
        maps = build(network)(torch.randn(2, 3, *size))
        levels = build(SimpleFPN)(maps)
        outs = build(FlexAttentionNeck)(levels)
    height, width = (-(-n // 16) for n in size)
    shapes = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width)]
    shapes.append((max(height // 2, 1), max(width // 2, 1)))
    shapes.append(tuple(-(-n // 2) for n in shapes[3]))
    assert [tuple(level.shape[2:]) for level in levels] == shapes
    assert [out.shape for out in outs] == [level.shape for level in levels]
    assert all(torch.isfinite(out).all() for out in outs)


@pytest.mark.parametrize('size', [(1, 1), (4, 160), (160, 4)], ids=str)
def test_fcvit_says_what_it_needs(size):
    with pytest.raises(UserError, match='needs 5 a side') as error:
        build(FCViT)(torch.randn(1, 3, *size))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize('size', [(31, 31), (33, 4097)], ids=str)
def test_fcvit_takes_sizes_that_its_strides_do_not_divide(size):
    with torch.no_grad():
        outs = build(FCViT)(torch.randn(1, 3, *size))
    assert [tuple(out.shape[2:]) for out in outs] == [tuple(-(-n // stride) for n in size) for stride in (4, 8)]
    assert all(torch.isfinite(out).all() for out in outs)


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_a_batch_of_one_is_that_image_of_a_larger_one(network):
    net, images = build(network), torch.randn(3, 3, 64, 48)
    with torch.no_grad():
        for one, more in zip(net(images[1:2]), net(images)):
            torch.testing.assert_close(one, more[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_a_batch_of_none(network):
    net = build(network)
    with torch.no_grad():
        some, none = net(torch.randn(1, 3, 64, 48)), net(torch.randn(0, 3, 64, 48))
    assert [out.shape for out in none] == [(0, *out.shape[1:]) for out in some]
