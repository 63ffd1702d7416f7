from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.layers.selection import Selection

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.layers.flex_utils import plainly, upsample_cells

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


def select(network: FlexViT, x: torch.Tensor) -> Selection:
    """What is selected."""
    seen = []
    handle = network.selector.register_forward_hook(lambda module, args, selection: seen.append(selection))
    with torch.no_grad():
        network(x)
    handle.remove()
    (selection,) = seen
    return selection


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


@pytest.mark.parametrize(
    'settings', [dict(select_ratio=0, out_indices=(0, 1)), dict(num_glance_layers=4, out_indices=(1,))]
)
@pytest.mark.parametrize('init_values', [None, 1.0])
def test_without_selection_the_low_resolution_map_is_that_of_timms_vit(init_values, settings, tmp_path):
    vit = timm_vit(class_token=False, global_pool='avg', init_values=init_values)
    checkpoint = save(vit, tmp_path / 'vit.pth')
    network = FlexViT(SMALL, 8, 64, **settings, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    network.init_weights()
    x = torch.randn(2, 3, 128, 128)
    expected = vit.forward_features(F.avg_pool2d(x, 2)).transpose(1, 2).unflatten(2, (8, 8))
    outs = network.eval()(x)
    torch.testing.assert_close(outs[-1], expected, rtol=1e-4, atol=1e-4)
    if len(outs) == 2:
        upsampled = F.interpolate(expected, (16, 16), mode='bilinear')
        torch.testing.assert_close(outs[0], upsampled, rtol=1e-4, atol=1e-4)


def test_a_plain_vit_costs_no_more_than_one():
    network = build(num_glance_layers=4, out_indices=(1,)).float()
    vit = timm_vit(class_token=False, global_pool='avg', dynamic_img_size=True)
    counts = []
    for step in (lambda x: network(x)[0], lambda x: vit.forward_features(F.avg_pool2d(x, 2))):
        with FlopCounterMode(display=False) as counter:
            step(images(1, 128, 128).float()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert all(parameter.grad is not None for parameter in network.parameters())


def embed(network: FlexViT, x: torch.Tensor) -> torch.Tensor:
    """All patches of an image with their positions, (B, N, C)."""
    patches = network.patch_embed(x)
    return (patches + network.positions(patches.shape[1:3], None)).flatten(1, 2)


@pytest.mark.parametrize('cell_size', [1, 2])
def test_all_selected_equals_attention_over_all_tokens_of_both_resolutions(cell_size):
    network = build(num_glance_layers=2, select_ratio=1.0, out_indices=(0, 1), cell_size=cell_size).eval()
    x = images(2, 64, 96)
    low, high = embed(network, F.avg_pool2d(x, 2)), embed(network, x)
    for block in network.blocks[:2]:
        high = high + plain_branch(block, low, high)
        low = low + plain_branch(block, low[:, :0], low)
        low, high = (tokens + block.mlp(block.norm2(tokens)) for tokens in (low, high))
    both = torch.cat([low, high], 1)
    for block in network.blocks[2:]:
        both = both + torch.stack([plainly(block.attn, image, 24) for image in block.norm1(both)])
        both = both + block.mlp(block.norm2(both))
    low = network.norm(both[:, :24]).transpose(1, 2).unflatten(2, (4, 6))
    high = network.norm_high(both[:, 24:]).transpose(1, 2).unflatten(2, (8, 12))
    torch.testing.assert_close(network(x), (high + F.interpolate(low, (8, 12), mode='bilinear'), low))


def plain_branch(block: nn.Module, low: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the attention of a plain block gives to tokens that look at ``low`` and at each other."""
    both = block.norm1(torch.cat([low, x], 1))
    return torch.stack([plainly(block.attn, image, len(image))[low.shape[1] :] for image in both])


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_what_was_not_chosen_is_the_low_resolution_map_to_the_bit(mode):
    settings = dict(select_mode=mode, select_threshold=100, select_ratio=0.2, cell_size=1, out_indices=(0, 1))
    network = build(patch_size=16, pretrain_size=128, **settings).eval()
    x = images(2, 192, 256)
    fused, low = network(x)
    chosen = upsample_cells(select(network, x).mask((6, 8)), (12, 16))
    changed = (fused != F.interpolate(low, (12, 16), mode='bilinear')).any(1)
    assert torch.equal(changed, chosen) and 0 < chosen.sum() < chosen.numel()
    # and of its pixels nothing is seen but what the shrunk image shows; of smaller patches the scout sees more
    detail = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().repeat(96, 128)
    hidden = (~chosen).repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    torch.testing.assert_close(network(x + hidden * detail), (fused, low), rtol=0, atol=1e-12)
    assert (network(x + detail)[0] - fused).abs().max() > 1e-3


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
@pytest.mark.parametrize('size', [(64, 96), (75, 101)])
def test_an_image_in_a_batch_gets_what_it_gets_alone(mode, size):
    network = build(select_mode=mode, select_threshold=100, out_indices=(0, 1), cell_size=1).eval()
    x = images(3, *size)
    x[1] = 0.1  # a plain picture
    if mode == 'threshold':
        assert len(set(select(network, x).keep.sum(1).tolist())) > 1
    whole = network(x)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1]), tuple(out[i : i + 1] for out in whole))


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_an_image_gives_alone_what_it_gives_beside_larger_ones(mode):
    network = build(select_mode=mode, select_threshold=60, out_indices=(0, 1), select_ratio=0.4, zoom=2).eval()
    x = images(3, 128, 160)
    sizes = [(128, 160), (50, 90), (33, 160)]
    for image, (height, width) in zip(x, sizes):
        image[:, height:] = image[:, :, width:] = 0
    for i, (height, width) in enumerate(sizes):
        for out, alone in zip(network(x), network(x[i : i + 1, :, :height, :width])):
            rows, columns = alone.shape[2:]
            torch.testing.assert_close(out[i : i + 1, :, :rows, :columns], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'settings', [{}, dict(out_indices=(0, 1)), dict(num_glance_layers=4), dict(select_mode='threshold')]
)
def test_every_parameter_has_a_gradient(settings):
    network = build(**settings)
    grads = gradients(network, images(2, 96, 96))
    assert [name for name, grad in grads.items() if grad.abs().max() == 0] == []
    assert any('relevance' in name for name in grads) and any('kv_high' in name for name in grads) == (
        network.num_glance_layers < 4
    )


def test_no_cell_at_all_leaves_no_parameter_out_of_the_graph():
    network = build(select_ratio=0.0)
    network(images(1, 64, 64))[0].sum().backward()
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


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_nothing_is_selected_in_the_padding_of_a_batch(mode):
    network = build(select_mode=mode, select_threshold=20, select_ratio=0.6, cell_size=1)  # training: some are drawn
    x = images(2, 96, 128)
    x[1, :, :, 40:] = 0  # a picture of 40 columns beside one of 128: 3 of 8 tokens
    chosen = select(network, x).mask((6, 8))
    assert chosen[1].any() and not chosen[1, :, 3:].any()
    if mode == 'topk':
        assert chosen.sum((1, 2)).tolist() == [round(0.6 * 48), round(0.6 * 18)]


def test_a_graph_minds_the_padding_too():
    network = build(dict(SMALL, depth=2), cell_size=1).eval()
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
    low = embed(network, F.avg_pool2d(x, 2)).unflatten(1, (4, 8))
    high = embed(network, x).unflatten(1, (8, 16))
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
        if i >= network.num_glance_layers:
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
    first = build(num_glance_layers=1).float()
    checkpoint = save(first, tmp_path / 'flex.pth')
    second = FlexViT(SMALL, 8, 64, num_glance_layers=1, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    second.init_weights()
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    longer = FlexViT(SMALL, 8, 64, num_glance_layers=2, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
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
        own = {name for name in set(sizes) - set(theirs) if not name.startswith('relevance.scout.')}
        assert {name.split('.')[-2] for name in own} == {'kv_high', 'norm_high', 'norm', 'questions'}


# The contract of a backbone.


def test_built_from_the_registry_by_its_scoped_name():
    network = ROOT.build(dict(type='mmvisattn.FlexViT', arch='tiny'))
    assert isinstance(network, FlexViT) and network.num_glance_layers == 8


def test_checkpointing_gives_the_same_gradients():
    x = images(2, 64, 64)
    torch.testing.assert_close(gradients(build(), x), gradients(build(with_cp=True), x), rtol=0, atol=0)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    network = build(frozen_stages=frozen_stages, drop_path_rate=0.1)
    network.train()
    for name, parameter in network.named_parameters():
        stage = (
            int(name.split('.')[1]) + 1
            if name.startswith('blocks')
            else 4
            if name.startswith(('norm', 'relevance'))
            else 0
        )
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
        'relevance.questions.weight': 5,
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
        (dict(select_explore=2), '`select_explore` is 2;.*from 0'),
        (dict(out_indices=(1,)), r'`out_indices` is \(1,\);.*`num_glance_layers=4`'),
        (dict(select_mode='top-k'), "'top-k'.*did you mean 'topk'"),
        (dict(num_glance_layers=5), '`num_glance_layers` is 5, with 4 layers in all.*to 4'),
        (dict(num_glance_layers=0), 'from 1'),
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
