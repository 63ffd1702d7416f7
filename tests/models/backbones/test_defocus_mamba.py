import json
import math
import sys

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba
from mmvisattn.models.backbones.defocus_mamba import Mixer
from mmvisattn.models.layers.patch_sequence import to_sequence
from mmvisattn.ops.selective_scan import interface, mamba_backend
from mmvisattn.testing import golden_image, load_golden_weights

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.golden import load

SMALL = dict(embed_dims=64, depth=2, d_inner=128, d_state=16, dt_rank=4, group_norm_size=64)
DENSE = {
    'defocus_small_patchchange_1x3x64x64': dict(token_order='window', pretrain_size=64),
    'defocus_small_patchchange_1x3x100x150': dict(token_order='window', pretrain_size=64),
    'defocus_small_plain_1x3x64x64': dict(token_order='raster'),
    'defocus_small_plain_1x3x100x150': dict(token_order='raster'),
    'defocus_small_plain_2x3x128x192': dict(token_order='raster'),
}
TOLERANCES = {torch.float32: dict(rtol=1e-5, atol=2e-5), torch.float64: dict(rtol=0, atol=1e-12)}
both_types = pytest.mark.parametrize('dtype', TOLERANCES, ids=str)


def expected_of(golden, name, dtype):
    return torch.from_numpy(golden[name + '_f64' if dtype == torch.float64 else name])


def check_gradient_norms(net, golden, rtol):
    names = golden['param_names'].tolist()
    assert names == [name for name, _ in net.named_parameters()]
    for name, expected in zip(names, golden['param_grad_norms_f64']):
        if name == 'cls_token':
            assert expected == 0  # hence frozen and not computed
        else:
            assert net.get_parameter(name).grad.norm().item() == pytest.approx(expected, rel=rtol), name


def check_names_and_shapes(net, golden):
    assert list(net.state_dict()) == golden['keys'].tolist()
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == json.loads(str(golden['shapes']))


@both_types
@pytest.mark.parametrize('backend', ['auto', 'torch'])
@pytest.mark.parametrize('case', DENSE)
def test_equals_the_authors_network(case, backend, dtype):
    golden = load(case)
    net = DefocusMamba(SMALL, rope_scale=20.0, delta_scale=4.57, scan_backend=backend, **DENSE[case])
    load_golden_weights(net)
    check_names_and_shapes(net, golden)
    net = net.to(dtype).eval()
    x = golden_image(golden['input_spec'], dtype=dtype).requires_grad_()
    out = net(x)[0]
    torch.testing.assert_close(out, expected_of(golden, 'out0', dtype), **TOLERANCES[dtype])
    out.square().mean().backward()
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    check_gradient_norms(net, golden, rtol)
    assert x.grad.norm().item() == pytest.approx(float(golden['input_grad_norm_f64']), rel=rtol)


def test_equals_the_authors_base_network():
    golden = load('defocus_base_1x3x64x64')
    net = DefocusMamba('base').eval()
    assert all(block.mixer.rope_scale == 20.0 and block.mixer.delta_scale == 4.57 for block in net.blocks)
    load_golden_weights(net)
    check_names_and_shapes(net, golden)
    with torch.no_grad():
        out = net(golden_image(golden['input_spec']))[0]
    # What float32 allows over 24 blocks: the authors' own error against float64 is as large.
    torch.testing.assert_close(out, torch.from_numpy(golden['out0_f64']), rtol=0, atol=4e-4, check_dtype=False)
    net = net.double()
    out = net(golden_image(golden['input_spec'], dtype=torch.float64))[0]
    torch.testing.assert_close(out, torch.from_numpy(golden['out0_f64']), rtol=0, atol=1e-10)
    out.square().mean().backward()
    check_gradient_norms(net, golden, rtol=1e-9)


@pytest.mark.parametrize('order', ['raster', 'quadrant'])
def test_equals_the_authors_classifier(order):
    """With the class token last in the sequence, and the window order of a classifier: quarters of the image."""
    golden = load(f'defocus_small_cls_{order}_2x3x64x64')
    order = dict(token_order='raster') if order == 'raster' else dict(token_order='window', pretrain_size=32)
    net = DefocusMamba(SMALL, rope_scale=4.0, delta_scale=2.0, **order).eval()
    load_classifier_weights(net)
    net.norm.eps = 1e-6
    heads = nn.ModuleDict({name: nn.Linear(64, 10) for name in ('head', 'head2')})
    load_golden_weights(heads)
    x = golden_image(golden['input_spec'])
    with torch.no_grad():
        features = torch.cat([net.patch_embed(x), net.cls_token.expand(2, -1, -1)], 1)
        for block in net.blocks:
            features = block(features)
        features = net.norm(features)
        logits = torch.cat([heads['head2'](features[:, :-1]), heads['head'](features[:, -1:])], 1)
        dense = to_sequence(net(x)[0], *net.patch_embed.layout(x))
    torch.testing.assert_close(features, torch.from_numpy(golden['features']), **TOLERANCES[torch.float32])
    torch.testing.assert_close(logits, torch.from_numpy(golden['logits']), **TOLERANCES[torch.float32])
    torch.testing.assert_close(dense, features[:, :-1], rtol=0, atol=1e-5)


def load_classifier_weights(net):
    """Golden weights go by name: those of a classifier, where the patch embedding is called `proj`."""
    load_golden_weights(net)
    load_golden_weights(net.patch_embed.projection, 'patch_embed.proj.')


@both_types
def test_mixer_equals_the_authors(dtype, monkeypatch):
    golden = load('mamba_mixer_2x37x64')
    mixer = Mixer(64, 128, 16, 4, 64, rope_scale=20.0, delta_scale=4.57)
    load_golden_weights(mixer)
    check_names_and_shapes(mixer, golden)
    mixer = mixer.to(dtype)
    seen = {}

    def scan(u, delta, A, B, C, *, backend):
        y = original(u, delta, A, B, C, backend=backend)
        seen.update(u=u, delta=delta, A=A, B=B, C=C, y=y)
        return y

    original = interface.selective_scan
    monkeypatch.setattr(interface, 'selective_scan', scan)
    x = torch.from_numpy(golden['x']).to(dtype).requires_grad_()
    out = mixer(x)
    torch.testing.assert_close(out, expected_of(golden, 'out', dtype), **TOLERANCES[dtype])
    for name, value in seen.items():
        torch.testing.assert_close(value.float(), torch.from_numpy(golden[f'scan_{name}']), rtol=1e-5, atol=1e-5)
    out.square().mean().backward()
    torch.testing.assert_close(x.grad, expected_of(golden, 'input_grad', dtype), **TOLERANCES[dtype])
    check_gradient_norms(mixer, golden, 1e-5 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize(
    'arch, file, num_params',
    [('base', 'defocus_base_keys', 91_112_832), ('large', 'defocus_large_keys', 317_674_240)],
)
def test_detector_names_shapes_and_number_of_parameters(arch, file, num_params):
    with torch.device('meta'):
        net = DefocusMamba(arch)
    check_names_and_shapes(net, load(file))
    assert sum(param.numel() for param in net.parameters()) == num_params


@pytest.mark.parametrize(
    'arch, file',
    [
        ('small', 'defocus_small_depth24_rank48_cls_keys'),
        (dict(DefocusMamba.arch_settings['small'], dt_rank=24), 'defocus_small_depth24_rank24_cls_keys'),
        ('base', 'defocus_base_cls_keys'),
        ('large', 'defocus_large_cls_keys'),
        ('large', 'defocus_large_22k_cls_keys'),
    ],
)
def test_classifiers_hold_all_that_the_network_needs(arch, file):
    golden = load(file)
    with torch.device('meta'):
        net = DefocusMamba(arch)
        weights = {key: torch.empty(shape) for key, shape in json.loads(str(golden['shapes'])).items()}
    assert sum(value.numel() for value in weights.values()) == golden['param_count']
    weights = net.checkpoint_filter(weights)
    heads = {key for key in weights if key.startswith('head')}
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in weights.items() if key not in heads} == shapes
    assert 'patch_embed.proj.weight' in golden['keys']


def released_file(net, kind):
    """A file as the authors lay it out, with the weights of a network."""
    weights = net.state_dict()
    if kind == 'classifier':
        weights = {name.replace('projection', 'proj'): value for name, value in weights.items()}
        return dict(model=weights | {'head.weight': torch.randn(10, 64), 'head2.weight': torch.randn(10, 64)})
    weights = {f'backbone.{name}': value for name, value in weights.items()}
    others = {'neck.fpn1.0.weight': torch.randn(64, 32, 2, 2), 'bbox_head.cls_branches.0.bias': torch.randn(80)}
    return dict(state_dict=weights | others, meta=dict(epoch=12), optimizer=dict(state={}))


@pytest.mark.parametrize('kind', ['classifier', 'detector'])
def test_released_files_load_as_they_are(kind, tmp_path):
    source, path = DefocusMamba(SMALL), str(tmp_path / 'released.pth')
    nn.init.normal_(source.cls_token)
    torch.save(released_file(source, kind), path)
    net = DefocusMamba(SMALL, init_cfg=dict(type='Pretrained', checkpoint=path))
    net.init_weights()
    for (name, ours), theirs in zip(net.state_dict().items(), source.state_dict().values()):
        assert torch.equal(ours, theirs), name
    assert not net.cls_token.requires_grad


def test_checkpoint_of_another_size_is_refused(tmp_path):
    path = str(tmp_path / 'released.pth')
    torch.save(released_file(DefocusMamba(SMALL), 'detector'), path)
    net = DefocusMamba(SMALL | dict(embed_dims=32), init_cfg=dict(type='Pretrained', checkpoint=path))
    with pytest.raises(UserError, match='set `arch` to match it'):
        net.init_weights()


def test_initialisation():
    torch.manual_seed(0)
    mixer = DefocusMamba(SMALL | dict(dt_rank=48, d_inner=512)).blocks[1].mixer
    delta = F.softplus(mixer.dt_proj.bias.detach())
    torch.testing.assert_close(delta.log(), torch.linspace(math.log(1e-3), math.log(0.1), 512), rtol=0, atol=1e-3)
    assert mixer.dt_proj.weight.abs().max() <= 48**-0.5
    assert mixer.dt_proj.weight.std().item() == pytest.approx(48**-0.5 / 3**0.5, rel=0.05)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).repeat(512, 1))
    assert mixer.freq.tolist() == pytest.approx([(100 ** (-n / 16) - 0.01) / 0.99 for n in range(1, 17)], abs=1e-6)
    for linear in (mixer.in_proj, mixer.x_proj, mixer.out_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)


def scales_of(arch, **kwargs):
    with torch.device('meta'):
        net = DefocusMamba(arch, **kwargs)
    (scales,) = {(block.mixer.rope_scale, block.mixer.delta_scale) for block in net.blocks}
    return net.patch_embed.window, *scales


@pytest.mark.parametrize(
    'arch, expected',
    [
        ('small', (14, 20.0, 4.57)),
        ('base', (14, 20.0, 4.57)),
        ('large', (24, 7.13, 2.67)),
        (SMALL, (14, 20.0, 4.57)),
        (dict(DefocusMamba.arch_settings['large'], depth=2), (24, 7.13, 2.67)),
        (SMALL | dict(delta_scale=2.0), (14, 20.0, 2.0)),
    ],
)
def test_default_scales_are_those_of_the_released_detectors(arch, expected):
    assert scales_of(arch) == expected


@pytest.mark.parametrize('arch', ['base', 'large', SMALL | dict(rope_scale=2.0)])
def test_a_scale_that_is_given_holds(arch):
    _, _, delta_scale = scales_of(arch)
    assert scales_of(arch, pretrain_size=64, rope_scale=3.0) == (4, 3.0, delta_scale)
    assert scales_of(arch, pretrain_size=64, rope_scale=3.0, delta_scale=1.5) == (4, 3.0, 1.5)


def test_arch_settings_stay_as_they_are():
    before = {name: dict(sizes) for name, sizes in DefocusMamba.arch_settings.items()}
    scales_of('large', pretrain_size=64, rope_scale=3.0)
    assert DefocusMamba.arch_settings == before


@pytest.mark.parametrize(
    'argument, message',
    [
        (dict(scan_backend='tritn'), "no scan_backend 'tritn' .did you mean 'triton'"),
        (
            dict(arch=SMALL | dict(group_norm_size=48)),
            '`d_inner` is 128; it must be a multiple of `group_norm_size`, 48',
        ),
        (dict(arch=SMALL | dict(d_state=15)), '`d_state` is 15; it must be an even integer'),
    ],
)
def test_wrong_argument_is_answered(argument, message):
    with pytest.raises(UserError, match=message):
        DefocusMamba(**dict(arch=SMALL) | argument)


def test_backend_that_cannot_run_here_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mamba_ssm', None)
    mamba_backend.unavailable_reason.cache_clear()
    with pytest.raises(UserError, match="`scan_backend` is 'mamba_ssm', which cannot run here: .*; set it to 'auto'"):
        DefocusMamba(SMALL, scan_backend='mamba_ssm')
    mamba_backend.unavailable_reason.cache_clear()


def test_place_where_the_state_is_lost_is_told():
    net = DefocusMamba(SMALL, token_order='raster')
    with torch.no_grad():
        net.blocks[1].mixer.A_log[5] = float('nan')
    with pytest.raises(FloatingPointError, match=r'A is not finite.*5'):
        net(torch.randn(1, 3, 32, 32))
