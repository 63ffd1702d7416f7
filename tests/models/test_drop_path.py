"""The rate at which blocks are skipped, rising over them as timm has it."""

from mmvisattn.models.backbones import FCViT

import pytest

from tests.models.networks import BACKBONES, build


def rates_of(network, depth, drop_path_rate):
    """Rates of the blocks in their order; those of FCViT stand in two stages where there are several."""
    sizes = dict(depth=depth)
    if network is FCViT:
        depths = (1, depth - 1) if depth > 1 else (1,)
        sizes = dict(depths=depths, embed_dims=(8,) * len(depths), mlp_ratios=(2,) * len(depths))
        sizes['out_indices'] = len(depths) - 1
    net = build(network, **sizes, drop_path_rate=drop_path_rate)
    paths = [module.drop_path for module in net.modules() if hasattr(module, 'drop_path')]
    return [getattr(path, 'drop_prob', 0.0) for path in paths]


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
@pytest.mark.parametrize(
    ('depth', 'rate', 'expected'),
    [
        (5, 0.4, [0, 0.1, 0.2, 0.3, 0.4]),
        (2, 0.3, [0, 0.3]),
        (1, 0.3, [0]),
        (1, 0, [0]),
        (3, 0.0, [0, 0, 0]),
    ],
)
def test_rate_rises_linearly_from_zero_to_that_of_the_last_block(network, depth, rate, expected):
    assert rates_of(network, depth, rate) == pytest.approx(expected)
