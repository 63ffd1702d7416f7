"""What holds for all three De-focus networks."""

from mmvisattn.engine import report_checkpoint
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT
from mmvisattn.models.layers.patch_sequence import to_sequence

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

MAMBA = dict(embed_dims=32, depth=3, d_inner=64, d_state=16, dt_rank=4, group_norm_size=32)
TRANSFORMER = dict(embed_dims=32, depth=3, num_heads=2, mlp_ratio=2)
ARCHS = {DefocusMamba: MAMBA, DefocusViT: TRANSFORMER, DefocusRetNet: TRANSFORMER}

all_networks = pytest.mark.parametrize('network', ARCHS, ids=lambda network: network.__name__)
both_orders = pytest.mark.parametrize('token_order', ['window', 'raster'])


def build(network, **kwargs):
    torch.manual_seed(0)
    kwargs = dict(arch=ARCHS[network], pretrain_size=64) | kwargs
    return network(**kwargs)


def gradients(net, x):
    outs = net(x)
    torch.manual_seed(1)
    loss = sum((out * torch.randn(out.shape, dtype=out.dtype)).sum() for out in outs)
    params = {name: param for name, param in net.named_parameters() if param.requires_grad}
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()))))


@all_networks
@both_orders
@pytest.mark.parametrize('size', [(64, 64), (100, 150), (31, 31), (112, 137), (16, 129), (1, 1)])
def test_map_has_one_position_for_each_patch(network, token_order, size):
    net = build(network, token_order=token_order)
    out = net(torch.randn(2, 3, *size))
    assert isinstance(out, tuple)
    assert [tuple(m.shape) for m in out] == [(2, 32, -(-size[0] // 16), -(-size[1] // 16))]


def sequence_of(net, x):
    """For each token of the sequence the row and column of its patch in the map, or None for padding."""
    (height, width), window = net.patch_embed.layout(x)
    number = torch.full((1, 1, height + -height % window[0], width + -width % window[1]), -1)
    number[..., :height, :width] = torch.arange(height * width).view(height, width)
    tokens = to_sequence(number, (height, width), window).flatten().tolist()
    return [divmod(n, width) if n >= 0 else None for n in tokens]


@all_networks
@both_orders
def test_token_depends_on_no_later_one_to_the_bit(network, token_order):
    net = build(network, token_order=token_order).eval()
    x = torch.randn(1, 3, 70, 110)
    sequence = sequence_of(net, x)
    places = [place for place in sequence if place]
    assert len(places) == 5 * 7
    with torch.no_grad():
        before = net(x)[0]
        for t, (row, col) in enumerate(places):
            changed = x.clone()
            changed[..., 16 * row : 16 * row + 16, 16 * col : 16 * col + 16] += 1
            differs = (net(changed)[0] != before).any(1)[0]
            differs = [differs[place].item() for place in places]
            assert not any(differs[:t])
            assert all(differs[t:])


@all_networks
def test_window_order_equals_raster_order_on_one_window(network):
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(build(network)(x), build(network, token_order='raster')(x))


@all_networks
def test_window_order_goes_through_the_image_square_by_square(network):
    """The first window alone gives the same as within a larger image, which in raster order it does not."""
    x = torch.randn(1, 3, 150, 150)
    for token_order, same in (('window', True), ('raster', False)):
        net = build(network, token_order=token_order).eval()
        whole, part = net(x)[0][..., :4, :4], net(x[..., :64, :64])[0]
        assert torch.allclose(whole, part, atol=1e-5) == same


@all_networks
def test_gradient_reaches_every_trainable_parameter(network):
    net = build(network)
    frozen = [name for name, param in net.named_parameters() if not param.requires_grad]
    assert frozen == (['cls_token'] if network is DefocusMamba else [])
    for name, grad in gradients(net, torch.randn(2, 3, 70, 110)).items():
        assert torch.isfinite(grad).all(), name
        assert grad.abs().max() > 0, name


@all_networks
def test_recomputed_blocks_give_the_same_gradients(network):
    x = torch.randn(2, 3, 70, 110)
    results = []
    for with_cp in (False, True):
        net = build(network, with_cp=with_cp, drop_path_rate=0.5).train()
        calls = []
        for block in net.blocks:
            block.register_forward_pre_hook(lambda *args: calls.append(1))  # noqa: B023
        torch.manual_seed(2)
        results.append(gradients(net, x))
        assert len(calls) == (6 if with_cp else 3)
    torch.testing.assert_close(*results)


@all_networks
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages_stay_as_they_are(network, frozen_stages):
    net = build(network, frozen_stages=frozen_stages).train()
    frozen = [net.patch_embed, *net.blocks][: frozen_stages + 1] + ([net.norm] if frozen_stages == 3 else [])
    free = [part for part in (net.patch_embed, *net.blocks, net.norm) if part not in frozen]
    assert all(not module.training for part in frozen for module in part.modules())
    assert all(module.training for part in free for module in part.modules())
    assert not any(param.requires_grad for part in frozen for param in part.parameters())
    assert all(param.requires_grad for part in free for param in part.parameters())
    if frozen_stages < 3:
        gradients(net, torch.randn(1, 3, 64, 64))


@all_networks
def test_layer_depth_rises_from_patches_to_norm(network):
    net = build(network)
    depths = {}
    for name, _ in net.named_parameters():
        depth, num_layers = net.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert num_layers == 5
        depths.setdefault('.'.join(name.split('.')[: 2 if name.startswith('blocks') else 1]), set()).add(depth)
    expected = dict(patch_embed={0}, norm={4}) | {f'blocks.{i}': {i + 1} for i in range(3)}
    if network is DefocusMamba:
        expected['cls_token'] = {0}
    assert depths == expected


@all_networks
def test_maps_of_several_blocks(network):
    x = torch.randn(1, 3, 70, 110)
    net = build(network, out_indices=(0, 2))
    outs = net(x)
    assert len(outs) == 2
    torch.testing.assert_close(outs[1:], build(network)(x))
    early = build(network, out_indices=0)
    assert len(early.blocks) == 1
    early.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(early(x), outs[:1])
    assert len(gradients(early, x)) == len([p for p in early.parameters() if p.requires_grad])


@all_networks
def test_drop_path_rises_over_the_blocks(network):
    net = build(network, drop_path_rate=0.4)
    assert [block.drop_path.drop_prob for block in net.blocks] == pytest.approx([0, 0.2, 0.4])
    x = torch.randn(4, 3, 64, 64)
    assert not torch.equal(net.train()(x)[0], net(x)[0])
    assert torch.equal(net.eval()(x)[0], net(x)[0])


@all_networks
def test_mixed_precision_keeps_the_residual_stream_in_float32(network):
    net = build(network)
    streams, inner = [], []
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, out: streams.append(out.dtype))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, out: inner.append(out.dtype))
    x = torch.randn(2, 3, 70, 110)
    with torch.autocast('cpu', torch.bfloat16):
        out = net(x)[0]
    assert set(streams) == {torch.float32}
    assert set(inner) == {torch.bfloat16}
    torch.testing.assert_close(out.float(), net(x)[0], rtol=0, atol=0.1)
    out.float().square().mean().backward()
    assert all(torch.isfinite(param.grad).all() for param in net.parameters() if param.requires_grad)


@all_networks
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_network_of_another_type(network, dtype):
    net, x = build(network).eval(), torch.randn(1, 3, 70, 110)
    expected = net(x)[0]
    out = net.to(dtype)(x.to(dtype))[0]
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.2 if dtype == torch.bfloat16 else 1e-4)


@all_networks
def test_built_by_name_from_a_stock_registry(network):
    net = MMENGINE_MODELS.build(dict(type=f'mmvisattn.{network.__name__}', arch=ARCHS[network]))
    assert isinstance(net, network)


def load_weights_of(network, weights, how, path):
    """A network of other weights than those of `build`, and then of these, loaded in one of the ways there are."""
    torch.manual_seed(3)
    net = network(ARCHS[network], pretrain_size=64)
    whole = nn.ModuleDict(dict(backbone=net))
    of_whole = {f'backbone.{name}': value for name, value in weights.items()}
    if how == 'torch':
        net.load_state_dict(weights)
    elif how == 'torch, whole model':
        whole.load_state_dict(of_whole)
    elif how == 'mmengine, whole model':  # as by `load_from`
        torch.save(dict(state_dict=of_whole), path)
        load_checkpoint(whole, str(path), strict=True)
    elif how == 'report of the runner':
        checkpoint = dict(state_dict=of_whole)
        report_checkpoint(whole, checkpoint)
        whole.load_state_dict(checkpoint['state_dict'])
    else:
        torch.save(weights, path)
        net.init_cfg = dict(type='Pretrained', checkpoint=str(path))
        net.init_weights()
    return net


WAYS = ['torch', 'torch, whole model', 'mmengine, whole model', 'report of the runner', 'Pretrained']


@all_networks
@pytest.mark.parametrize('how', WAYS)
@pytest.mark.parametrize('embedding', ['proj', 'projection'])
def test_weights_load_under_either_name_of_the_patch_embedding(network, how, embedding, tmp_path):
    source = build(network)
    weights = {name.replace('projection', embedding): value for name, value in source.state_dict().items()}
    names = list(weights)
    target = load_weights_of(network, weights, how, tmp_path / 'model.pth')
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(source(x)[0], target(x)[0])
    assert list(weights) == names  # left as they were given
    assert list(target.state_dict()) == list(source.state_dict())


@all_networks
@pytest.mark.parametrize(
    'argument, message',
    [
        (dict(arch='bas'), "no arch 'bas' .did you mean 'base'"),
        (dict(arch=dict(embed_dims=32)), 'missing .*depth'),
        (dict(token_order='spiral'), "`token_order` is 'spiral'.*'window', 'raster'"),
        (dict(pretrain_size=100), '`pretrain_size` is 100.*multiple of 16'),
        (dict(pretrain_size=0), '`pretrain_size` is 0'),
        (dict(rope_scale=0), '`rope_scale` is 0'),
        (dict(delta_scale=-1.0), '`delta_scale` is -1'),
        (dict(out_indices=(3,)), '`out_indices`'),
        (dict(frozen_stages=4), '`frozen_stages` is 4'),
        (dict(drop_path_rate=1.0), '`drop_path_rate` is 1'),
    ],
)
def test_wrong_argument_is_answered(network, argument, message):
    with pytest.raises(UserError, match=message):
        build(network, **argument)


@all_networks
@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64), (1, 3, 64)])
def test_wrong_input_is_answered(network, shape):
    with pytest.raises(UserError, match=r'\(B, 3, H, W\); it was given'):
        build(network)(torch.randn(shape))
