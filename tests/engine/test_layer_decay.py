from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT, FCViT, FlexViT

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

SMALL = dict(embed_dims=(8, 16, 16, 24), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2))


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(24, 4, 1)


def optimizer_of(model: nn.Module, **paramwise):
    config = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model, config).optimizer


def groups_by_name(model: nn.Module, **paramwise) -> dict[str, dict]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimizer_of(model, **paramwise).param_groups
    return {names[parameter]: group for group in groups for parameter in group['params']}


def test_rates_fall_from_the_head_to_the_stem():
    model = Detector(FCViT(SMALL))
    groups = groups_by_name(model, layer_decay_rate=0.5)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    expected = {  # six layers: stem, four stages, output norms
        'head.weight': 1.0,
        'backbone.norm6.weight': 1.0,
        'backbone.network.6.0.norm1.weight': 0.5,
        'backbone.network.5.proj.weight': 0.5,
        'backbone.network.4.0.norm1.weight': 0.5**2,
        'backbone.network.0.0.norm1.weight': 0.5**4,
        'backbone.patch_embed.proj.weight': 0.5**5,
    }
    assert {name: groups[name]['lr'] for name in expected} == pytest.approx(expected)


def test_the_other_options_hold_as_well():
    model = Detector(FCViT(SMALL))
    options = dict(norm_decay_mult=0.5, custom_keys={'head': dict(lr_mult=3.0), 'network.6': dict(lr_mult=10.0)})
    groups = groups_by_name(model, layer_decay_rate=0.5, **options)
    assert groups['backbone.network.0.0.norm1.weight']['weight_decay'] == 0.025
    assert groups['backbone.network.0.0.token_mixer.dw1.bias']['weight_decay'] == 0
    assert groups['backbone.network.0.0.token_mixer.dw1.weight']['weight_decay'] == 0.05
    assert groups['head.weight']['lr'] == 3.0
    assert groups['backbone.network.6.0.norm1.weight']['lr'] == pytest.approx(10 * 0.5)


TRANSFORMER = dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)
MAMBA = dict(embed_dims=16, depth=2, d_inner=32, d_state=4, dt_rank=3, group_norm_size=16)


@pytest.mark.parametrize(
    ('backbone', 'arch', 'undecayed'),
    [
        (FCViT, SMALL, set()),
        (DefocusMamba, MAMBA, {'blocks.0.mixer.A_log', 'blocks.1.mixer.A_log'}),
        (DefocusViT, TRANSFORMER, set()),
        (DefocusRetNet, TRANSFORMER, set()),
        (FlexViT, TRANSFORMER, {'pos_embed'}),
    ],
)
def test_what_does_not_decay(backbone, arch, undecayed):
    model = Detector(backbone(arch))
    assert model.backbone.no_weight_decay() == undecayed
    groups = groups_by_name(model, layer_decay_rate=0.9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.dim() == 1 or name.removeprefix('backbone.') in undecayed
            assert groups[name]['weight_decay'] == (0 if vector else 0.05), name
    groups = groups_by_name(model, layer_decay_rate=0.9, custom_keys={'A_log': dict(decay_mult=2), 'pos_embed': {}})
    decays = {groups[f'backbone.{name}']['weight_decay'] for name in undecayed}
    assert decays <= ({0.1} if backbone is DefocusMamba else {0.05})


def test_frozen_parameters_are_left_out():
    groups = groups_by_name(Detector(FCViT(SMALL, frozen_stages=1)), layer_decay_rate=0.9)
    assert not any(name.startswith(('backbone.patch_embed', 'backbone.network.0')) for name in groups)


def test_a_step_moves_every_parameter():
    model = Detector(FCViT(SMALL, layer_scale_init_value=0.5))
    optimizer = optimizer_of(model, layer_decay_rate=0.8)
    before = [parameter.clone() for parameter in model.parameters()]
    outs = model.backbone(torch.randn(2, 3, 64, 64))
    (sum(out.square().mean() for out in outs) + model.head(outs[-1]).square().mean()).backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(UserError, match='paramwise_cfg.layer_decay_rate'):
        optimizer_of(Detector(FCViT(SMALL)), layer_decay_rate=rate)


def test_a_backbone_without_depths_is_refused():
    with pytest.raises(UserError, match='Conv2d has no `get_layer_depth`'):
        optimizer_of(Detector(nn.Conv2d(3, 8, 1)), layer_decay_rate=0.9)
