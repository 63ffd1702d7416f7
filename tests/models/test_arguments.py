"""Numbers that the networks are given."""

import inspect
import re
from numbers import Number

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT, FCViT, FlexViT
from mmvisattn.models.checks import RULES

import pytest
import torch

from tests.models.networks import BACKBONES, OTHERS, build

COUNT = (0, -1, 2.5, '4', True, None)
RATE = (-0.5, 1.0, 1.5, float('nan'), '0')
SCALE = (0, -1.0, float('nan'), float('inf'), '1')
BAD = {
    **dict.fromkeys(('depth', 'num_heads', 'embed_dims', 'd_inner', 'dt_rank', 'group_norm_size'), COUNT),
    **dict.fromkeys(('in_channels', 'out_channels', 'num_outs', 'num_classes', 'num_layers'), COUNT),
    **dict.fromkeys(('patch_size', 'cell_size'), COUNT),
    # None is the default of some.
    **dict.fromkeys(('pretrain_size', 'num_glance_layers'), (*COUNT[:-1], 100)),
    'd_state': (0, 3, 4.0),
    'zoom': (1, 1.5, True),
    **dict.fromkeys(('low_level', 'high_level', 'start_level'), (-1, 1.5, 'P3')),
    **dict.fromkeys(('in_index', 'ignore_index', 'frozen_stages'), (0.5, '1')),
    **dict.fromkeys(('out_indices',), ((0.5,), (99,), ())),
    **dict.fromkeys(('mlp_ratio', 'rope_scale', 'delta_scale'), SCALE),
    **dict.fromkeys(('drop_rate', 'drop_path_rate'), RATE),
    **dict.fromkeys(('layer_scale_init_value', 'loss_weight'), (-1e-6, float('nan'), '1')),
    **dict.fromkeys(('select_ratio', 'select_explore'), (-0.1, 1.1, float('nan'), 25)),
    'select_threshold': (-1, 256, float('nan')),
}
BAD_IN_FCVIT = {
    'embed_dims': (8, (8, 0), (8, 16.0), (8, 12), (8,), '816'),
    'depths': (1, (1, 0), (1, 1.5), (1,), ()),
    'mlp_ratios': (2, (2, 0), (2, float('nan')), (2, 0.01), (2, 2, 2)),
}


def arguments_of(network) -> list[str]:
    """Names of all arguments that are numbers or sequences of them, those of ``arch`` included."""
    parameters = inspect.signature(network).parameters.values()
    names = [p.name for p in parameters if 'int' in str(p.annotation) or 'float' in str(p.annotation)]
    return names + list((BACKBONES | OTHERS)[network].get('arch', {}))


def cases():
    for network in BACKBONES | OTHERS:
        for name in arguments_of(network):
            bad = BAD_IN_FCVIT.get(name) if network is FCViT else None
            for value in bad or BAD[name]:
                yield pytest.param(network, name, value, id=f'{network.__name__}-{name}-{value}')


@pytest.mark.parametrize(('network', 'name', 'value'), cases())
def test_wrong_number_is_refused_by_name(network, name, value):
    if network is FlexViT and name == 'num_glance_layers' and value is None:
        return
    with pytest.raises(UserError, match=f'`{name}`') as error, torch.device('meta'):
        build(network, **{name: value})
    assert len(str(error.value).splitlines()) == 1
    assert re.search(r'it must be|must be|set it|differ in length|give it|heads must', str(error.value))


@pytest.mark.parametrize('network', BACKBONES | OTHERS)
def test_every_number_has_a_rule(network):
    own = {'out_indices'}  # checked with the number of outputs
    assert set(arguments_of(network)) - own <= set(RULES)


def test_arguments_are_all_found():
    assert {'depth', 'mlp_ratio', 'zoom', 'select_threshold', 'drop_path_rate', 'in_channels'} <= set(
        arguments_of(FlexViT)
    )
    defaults = inspect.signature(FCViT).parameters.values()
    numbers = {p.name for p in defaults if isinstance(p.default, Number) and not isinstance(p.default, bool)}
    assert numbers <= set(arguments_of(FCViT))


@pytest.mark.parametrize('network', BACKBONES | OTHERS)
def test_docstring_tells_every_argument_in_its_order(network):
    described = re.search(r'^Args:\n(.*?)(\n\n|\Z)', inspect.getdoc(network), re.DOTALL | re.MULTILINE)[1]
    assert re.findall(r'^    (\w+) \(', described, re.MULTILINE) == list(inspect.signature(network).parameters)


GOOD = [
    *((network, dict(depth=1, drop_path_rate=0.3)) for network in (DefocusMamba, DefocusViT, DefocusRetNet, FlexViT)),
    *((network, dict(drop_path_rate=0)) for network in BACKBONES),
    *((network, dict(drop_path_rate=0.999)) for network in BACKBONES),
    (FCViT, dict(embed_dims=(8,), depths=[1], mlp_ratios=(0.5,), out_indices=0, drop_rate=0.999)),
    (FCViT, dict(layer_scale_init_value=0)),
    (FlexViT, dict(num_glance_layers=2, select_ratio=0)),
    (FlexViT, dict(select_ratio=1, cell_size=1, zoom=3)),
    (FlexViT, dict(select_mode='threshold', select_threshold=255)),
    (DefocusMamba, dict(d_state=2, dt_rank=1, group_norm_size=1, rope_scale=1, delta_scale=1e-3)),
]


@pytest.mark.parametrize(('network', 'changes'), GOOD, ids=lambda value: getattr(value, '__name__', str(value)))
def test_numbers_at_the_edge_build_and_run(network, changes):
    torch.manual_seed(1)
    outs = build(network, **changes).train()(torch.randn(2, 3, 40, 56))
    assert all(torch.isfinite(out).all() for out in outs)
    sum(out.sum() for out in outs).backward()
