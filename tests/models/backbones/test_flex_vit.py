from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.layers.flex_utils import upsample_cells

SMALL = dict(embed_dims=24, depth=4, num_heads=3, mlp_ratio=2)


def build(arch=SMALL, seed: int = 0, patch_size: int = 8, pretrain_size: int = 64, **kwargs) -> FlexViT:
    """A network in float64 with sharp attention, and W' other than W."""
    torch.manual_seed(seed)
    network = FlexViT(arch, patch_size, pretrain_size, **kwargs).double()
    network.init_weights()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3 if 'attn' in name else 0.1)
    return network


def images(*shape: int) -> torch.Tensor:
    """Random pictures with structure at several scales."""
    coarse = F.interpolate(torch.randn(shape[0], 3, 5, 5), shape[1:], mode='bicubic')
    return (coarse + 0.5 * torch.randn(shape[0], 3, *shape[1:])).double()


def gradients(network: FlexViT, x: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    sum(out.square().mean() for out in network(x)).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def selections(network: FlexViT, x: torch.Tensor) -> list:
    """What each layer selects."""
    seen = []
    handle = network.selector.register_forward_hook(lambda module, args, selection: seen.append(selection))
    with torch.no_grad():
        network(x)
    handle.remove()
    return seen


def timm_vit(**kwargs) -> VisionTransformer:
    """A ViT of timm with the sizes of SMALL, every branch counting."""
    torch.manual_seed(1)
    network = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=24, depth=4, num_heads=3, mlp_ratio=2, fc_norm=False, **kwargs
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def save(network: nn.Module, path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


# What the network computes.


@pytest.mark.parametrize('settings', [dict(select_ratio=0), dict(num_plain_layers=4)])
@pytest.mark.parametrize('init_values', [None, 1.0])
def test_without_selection_the_low_resolution_map_is_that_of_timms_vit(init_values, settings, tmp_path):
    vit = timm_vit(class_token=False, global_pool='avg', init_values=init_values)
    checkpoint = save(vit, tmp_path / 'vit.pth')
    network = FlexViT(
        SMALL, 8, 64, **settings, out_indices=(1,), init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    )
    network.init_weights()
    x = torch.randn(2, 3, 128, 128)
    expected = vit.forward_features(F.avg_pool2d(x, 2)).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(network.eval()(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_plain_vit_costs_no_more_than_one():
    network = build(num_plain_layers=4, out_indices=(1,)).float()
    vit = timm_vit(class_token=False, global_pool='avg', dynamic_img_size=True)
    counts = []
    for step in (lambda x: network(x)[0], lambda x: vit.forward_features(F.avg_pool2d(x, 2))):
        with FlopCounterMode(display=False) as counter:
            step(images(1, 128, 128).float()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_all_selected_equals_attention_over_all_tokens_of_both_resolutions():
    network = build(num_plain_layers=1, select_ratio=1.0, out_indices=(0, 1), cell_size=1).eval()
    x = images(2, 64, 96)
    low, high = network.embed(F.avg_pool2d(x, 2)), network.embed(x)
    low, high, *_ = network.forward_plain(low.flatten(1, 2), high, (4, 6))
    high = high.flatten(1, 2)
    for block in network.blocks[1:]:
        low, high, *_ = block(low, high)
    low = network.norm(low).transpose(1, 2).unflatten(2, (4, 6))
    high = network.norm_high(high).transpose(1, 2).unflatten(2, (8, 12))
    torch.testing.assert_close(network(x), (high + F.interpolate(low, (8, 12), mode='bilinear'), low))


@pytest.mark.parametrize('zoom', [2, 3])
def test_windows_of_the_plain_layers_are_encoded_like_images_of_their_own(zoom):
    network = build(num_plain_layers=2, zoom=zoom).eval()
    high = torch.randn(2, 3 * zoom, 4 * zoom, 24, dtype=torch.double)
    low = torch.randn(2, 12, 24, dtype=torch.double)
    new_low, new_high, q, k = network.forward_plain(low, high, (3, 4))
    assert q.shape == k.shape == (2, 3, 12, 8)
    for row in range(zoom):
        for column in range(zoom):
            part = (slice(None), slice(3 * row, 3 * row + 3), slice(4 * column, 4 * column + 4))
            crop = high[part].flatten(1, 2)
            expected = network.blocks[1](network.blocks[0](crop)[0])[0]
            torch.testing.assert_close(new_high[part].flatten(1, 2), expected)
    torch.testing.assert_close(new_low, network.blocks[1](network.blocks[0](low)[0])[0])


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_tokens_that_were_never_selected_stay_as_they_were_to_the_bit(mode):
    network = build(select_mode=mode, select_threshold=120, select_ratio=0.2, cell_size=1).eval()
    x = images(2, 96, 128)
    final = []
    network.norm_high.register_forward_hook(lambda module, args, out: final.append(args[0]))
    chosen = torch.stack([selection.mask((6, 8)) for selection in selections(network, x)])
    assert len(chosen) == 3 and not torch.equal(chosen[0], chosen[-1])
    _, high, *_ = network.forward_plain(network.embed(F.avg_pool2d(x, 2)).flatten(1, 2), network.embed(x), (6, 8))
    touched = upsample_cells(chosen.any(0), (12, 16))
    assert 0 < touched.sum() < touched.numel()
    assert torch.equal(final[0][~touched], high[~touched])
    assert (final[0][touched] != high[touched]).all()


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
@pytest.mark.parametrize('size', [(64, 96), (75, 101)])
def test_an_image_in_a_batch_gets_what_it_gets_alone(mode, size):
    network = build(select_mode=mode, select_threshold=100, out_indices=(0, 1), cell_size=1).eval()
    x = images(3, *size)
    x[1] = 0.1  # a plain picture
    counts = (
        [selection.keep.sum(1).tolist() for selection in selections(network, x)] if mode == 'threshold' else [[0, 1]]
    )
    assert any(len(set(row)) > 1 for row in counts)
    whole = network(x)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1]), tuple(out[i : i + 1] for out in whole))


def test_selection_has_no_gradient_but_everything_else_does():
    network = build(out_indices=(0, 1))
    grads = gradients(network, images(2, 96, 96))
    assert [name for name, grad in grads.items() if grad.abs().max() == 0] == []
    assert any('kv_high' in name for name in grads)
    # the fine image matters through the tokens that low-resolution ones look at, and through those written back
    for i in (0, 1):
        x = images(1, 64, 64).requires_grad_()
        detail = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().repeat(32, 32)  # unseen at low resolution
        network(x)[i].square().sum().backward()
        assert (x.grad * detail).sum().abs() > 1e-6


@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 1)])
def test_every_parameter_has_a_gradient(out_indices):
    network = build(out_indices=out_indices)
    outs = network(images(2, 64, 64))
    assert isinstance(outs, tuple) and len(outs) == len(out_indices)
    sum(out.square().mean() for out in outs).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_picture_without_content_gives_finite_output():
    for mode in ('topk', 'threshold'):
        network = build(select_mode=mode)
        out = network(torch.zeros(2, 3, 64, 64, dtype=torch.double))[0]
        out.sum().backward()
        assert torch.isfinite(out).all() and torch.isfinite(network.blocks[-1].attn.kv_high.weight.grad).all()


# Input sizes.


@pytest.mark.parametrize('zoom', [2, 3])
@pytest.mark.parametrize('size', [(64, 64), (31, 31), (112, 137), (17, 90), (1, 1)])
def test_output_shapes(size, zoom):
    network = build(zoom=zoom, out_indices=(0, 1)).eval()
    outs = network(torch.randn(1, 3, *size, dtype=torch.double))
    for out, stride in zip(outs, (8, 8 * zoom)):
        assert out.shape == (1, 24, -(-size[0] // stride), -(-size[1] // stride))
        assert torch.isfinite(out).all()


def test_padding_inside_equals_padding_outside_up_to_selection():
    network = build(select_ratio=1.0).eval()
    x = images(1, 75, 101)
    padded = network(F.pad(x, (0, 128 - 101, 0, 96 - 75)))[0]
    torch.testing.assert_close(network(x)[0], padded[:, :, :10, :13])


def calls(network: FlexViT, x: torch.Tensor) -> list[tuple]:
    """What the selector is given in each layer."""
    seen = []
    handle = network.selector.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        network(x)
    handle.remove()
    return seen


def test_padding_is_told_to_the_selection_where_there_is_any():
    network = build(cell_size=2, select_ratio=0.5)
    assert calls(network, images(1, 64, 64))[0][1:] == (None, None)
    _, valid, cells = calls(network, images(1, 33, 64))[0]  # 5×8 patches; 3×4 low-resolution tokens, padded to 4×4
    assert valid[0].tolist() == [[True] * 4] * 3 + [[False] * 4] and cells is None  # each cell shows a part of it
    _, valid, cells = calls(network, F.pad(images(1, 33, 64), (0, 64, 0, 0)))[0]
    assert valid[0].tolist() == [[True] * 4 + [False] * 4] * 3 + [[False] * 8]
    assert cells[0].tolist() == [[True] * 2 + [False] * 2] * 2


@pytest.mark.parametrize('relevance', ['contrast', 'received'])
@pytest.mark.parametrize('mode', ['topk', 'threshold', 'random'])
def test_nothing_is_selected_in_the_padding_of_a_batch(mode, relevance):
    network = build(
        select_mode=mode, select_threshold=20, select_ratio=0.6, relevance=relevance, cell_size=1, num_plain_layers=1
    ).eval()
    x = images(2, 96, 128)
    x[1, :, :, 40:] = 0  # a picture of 40 columns beside one of 128: 3 of 8 tokens
    for selection in selections(network, x):
        chosen = selection.mask((6, 8))
        assert chosen[1].any() and not chosen[1, :, 3:].any()
        if mode != 'threshold':
            assert chosen.sum((1, 2)).tolist() == [round(0.6 * 48), round(0.6 * 18)]


def test_what_the_padding_of_a_batch_still_changes():
    """The figure of the docstring; 0 would be an image that does not notice its batch."""
    torch.manual_seed(0)
    network = FlexViT('tiny').eval()
    x = torch.randn(2, 3, 512, 768)
    x[1, :, :, 512:] = 0
    with torch.no_grad():
        together, alone = network(x)[0][1:, :, :, :32], network(x[1:, :, :, :512])[0]
    assert 0.15 < (together - alone).norm() / alone.norm() < 0.35


def test_positions_follow_the_image_and_not_its_batch():
    network = build()
    x = images(2, 64, 96)
    x[1, :, 40:] = x[1, :, :, 60:] = 0
    given = []
    handle = network.blocks[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    network(x)
    network(x[1:, :, :40, :60])
    handle.remove()
    low, _, alone, _ = given
    # 3×4 low-resolution tokens, in the batch among 4×6
    torch.testing.assert_close(
        low.unflatten(1, (4, 6))[1:, :3, :4], alone.unflatten(1, (4, 4))[:, :3], atol=1e-5, rtol=0
    )


def test_a_graph_minds_the_padding_too():
    network = build(dict(SMALL, depth=2), cell_size=1, num_plain_layers=1).eval()
    x = images(2, 64, 96)
    x[1, :, :, 40:] = 0
    compiled = torch.compile(network, backend='eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


def test_position_embedding_is_resampled_to_the_image():
    network = build()
    network.pos_embed.data = torch.linspace(0, 1, 8).repeat(8, 1).flatten()[None, :, None].expand(-1, -1, 24).double()
    network.patch_embed.proj.bias.data.zero_()
    x = torch.zeros(1, 3, 64, 128, dtype=torch.double)
    low, high = network.embed(F.avg_pool2d(x, 2)), network.embed(x)  # (1, 4, 8, 24), (1, 8, 16, 24)
    torch.testing.assert_close(low[0, 0, :, 0], torch.linspace(0, 1, 8).double(), rtol=1e-4, atol=1e-4)
    # a token lies in the middle of the four below it
    torch.testing.assert_close(
        low[0, :, 1:-1], F.avg_pool2d(high[0].permute(2, 0, 1), 2).permute(1, 2, 0)[:, 1:-1], rtol=0, atol=0.02
    )


# Weights.


@pytest.mark.parametrize(
    'options', [{}, dict(reg_tokens=3), dict(no_embed_class=True), dict(class_token=False, global_pool='avg')]
)
def test_loads_weights_of_timm(options, tmp_path):
    state = timm_vit(**options).state_dict()
    torch.save(dict(model=state), tmp_path / 'vit.pth')
    network = FlexViT(SMALL, 8, 64, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth')))
    network.init_weights()
    assert torch.equal(network.pos_embed, state['pos_embed'][:, -64:])
    for i, block in enumerate(network.blocks):
        assert torch.equal(block.attn.qkv.weight, state[f'blocks.{i}.attn.qkv.weight'])
        if i >= network.num_plain_layers:
            assert torch.equal(block.attn.kv_high.weight, state[f'blocks.{i}.attn.qkv.weight'][24:])
            assert torch.equal(block.attn.kv_high.bias, state[f'blocks.{i}.attn.qkv.bias'][24:])
    assert torch.equal(network.norm_high.weight, state['norm.weight'])
    assert torch.equal(network.patch_embed.proj.weight, state['patch_embed.proj.weight'])


def test_loads_timm_models_by_name(monkeypatch):
    monkeypatch.setattr('timm.create_model', lambda name, pretrained: timm_vit())
    checkpoint = 'timm://deit_tiny_patch16_224'
    network = FlexViT(SMALL, 8, 64, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    network.init_weights()
    assert torch.equal(network.blocks[3].mlp.fc1.weight, timm_vit().blocks[3].mlp.fc1.weight)


def test_position_embedding_of_another_size_is_resampled(tmp_path):
    checkpoint = save(timm_vit(), tmp_path / 'vit.pth')
    network = FlexViT(SMALL, 8, 48, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    network.init_weights()
    grid = timm_vit().pos_embed[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    expected = F.interpolate(grid, (6, 6), mode='bicubic', antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.pos_embed, expected)


def test_own_weights_come_back_as_they_were(tmp_path):
    first = build(num_plain_layers=1).float()
    checkpoint = save(first, tmp_path / 'flex.pth')
    second = FlexViT(SMALL, 8, 64, num_plain_layers=1, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    second.init_weights()
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    longer = FlexViT(SMALL, 8, 64, num_plain_layers=2, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    longer.init_weights()
    assert torch.equal(longer.blocks[2].attn.kv_high.weight, first.blocks[2].attn.kv_high.weight)


@pytest.mark.parametrize(
    ('options', 'arguments', 'message'),
    [
        ({}, dict(patch_size=16), 'patches of 8×8 pixels and FlexViT of 16×16.*set `patch_size=8`'),
        (dict(qk_norm=True), {}, "'blocks.0.attn.q_norm.weight', a part that the layers of FlexViT lack"),
        ({}, dict(arch=dict(SMALL, embed_dims=48)), 'set `arch` to match'),
    ],
)
def test_weights_that_do_not_fit(options, arguments, message, tmp_path):
    arguments = dict(arch=SMALL, patch_size=8, pretrain_size=64) | arguments
    checkpoint = save(timm_vit(**options), tmp_path / 'vit.pth')
    with pytest.raises(UserError, match=message):
        FlexViT(**arguments, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)).init_weights()


def test_named_sizes_have_the_shapes_of_timms_deit():
    for arch, dim in (('tiny', 192), ('small', 384), ('base', 768)):
        with torch.device('meta'):
            sizes = {name: value.shape for name, value in FlexViT(arch).state_dict().items()}
            deit = VisionTransformer(embed_dim=dim, num_heads=dim // 64)
            theirs = {name: value.shape for name, value in deit.state_dict().items()}
        shared = [name for name in sizes if name in theirs and name != 'pos_embed']
        assert all(sizes[name] == theirs[name] for name in shared)
        assert set(theirs) - set(shared) == {'cls_token', 'pos_embed', 'head.weight', 'head.bias'}
        assert {name.split('.')[-2] for name in set(sizes) - set(theirs)} == {'kv_high', 'norm_high'}


# The contract of a backbone.


def test_built_from_the_registry_by_its_scoped_name():
    network = ROOT.build(dict(type='mmvisattn.FlexViT', arch='tiny'))
    assert isinstance(network, FlexViT) and network.num_plain_layers == 3


def test_checkpointing_gives_the_same_gradients():
    x = images(2, 64, 64)
    torch.testing.assert_close(gradients(build(), x), gradients(build(with_cp=True), x), rtol=0, atol=0)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    network = build(frozen_stages=frozen_stages, drop_path_rate=0.1)
    network.train()
    for name, parameter in network.named_parameters():
        stage = int(name.split('.')[1]) + 1 if name.startswith('blocks') else 4 if name.startswith('norm') else 0
        assert parameter.requires_grad == (stage > frozen_stages), name
    assert [block.training for block in network.blocks] == [i >= frozen_stages for i in range(4)]
    if frozen_stages < 4:
        network(images(1, 64, 64))[0].sum().backward()


def test_drop_path_rises_over_the_layers():
    network = build(drop_path_rate=0.3)
    assert [block.drop_path.drop_prob for block in network.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_layer_depth():
    network = build()
    depth = {name: network.get_layer_depth('backbone.' + name, 'backbone.') for name in network.state_dict()}
    assert {n for _, n in depth.values()} == {6}
    expected = {
        'pos_embed': 0,
        'patch_embed.proj.weight': 0,
        'blocks.0.norm1.weight': 1,
        'blocks.3.attn.kv_high.weight': 4,
        'norm.weight': 5,
        'norm_high.bias': 5,
    }
    assert {name: depth[name][0] for name in expected} == expected


def test_mixed_precision_stays_near_full():
    network = build(select_ratio=1.0).float().eval()
    x = images(1, 64, 64).float()
    expected = network(x)[0]
    with torch.autocast('cpu', torch.bfloat16):
        out = network(x)[0]
    assert (out.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_topk_compiles_to_one_graph_and_exports():
    network = build(dict(SMALL, depth=2), out_indices=(0, 1)).float().eval()
    x = images(2, 64, 100).float()
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(torch.compile(network, backend='eager', fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='smal'), "no arch 'smal'.*did you mean 'small'"),
        (dict(arch=dict(SMALL, num_heads=5)), 'heads must divide'),
        (dict(zoom=1), '`zoom` is 1;.*integer from 2'),
        (dict(zoom=1.5), '`zoom` is 1.5'),
        (dict(select_ratio=25), '`select_ratio` is 25;.*from 0'),
        (dict(relevance='contrasts'), "`relevance` is 'contrasts'.*did you mean 'contrast'"),
        (dict(select_mode='top-k'), "'top-k'.*did you mean 'topk'"),
        (dict(num_plain_layers=5), '`num_plain_layers` is 5, with 4 layers in all.*to 4'),
        (dict(num_plain_layers=0), 'from 1'),
        (dict(cell_size=0), '`cell_size` is 0'),
        (dict(pretrain_size=60), '`pretrain_size` is 60;.*multiple of `patch_size`, 8'),
        (dict(out_indices=(2,)), 'from 0 to 1'),
        (dict(frozen_stages=5), 'up to 4'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(**kwargs)


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64)])
def test_wrong_input(shape):
    with pytest.raises(UserError, match='FlexViT'):
        build()(torch.randn(shape).double())
