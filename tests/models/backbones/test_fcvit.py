import json
from unittest import mock

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FCViT
from mmvisattn.models.backbones.fcvit import Block, ChannelMixer, GlobalContext
from mmvisattn.ops import inverted_bottleneck
from mmvisattn.testing import PlainFCViT, global_context, golden_image, gradients, load_golden_weights

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.distributed import FileStore
from torch.nn.parallel import DistributedDataParallel

from tests.golden import load

SMALL = dict(embed_dims=(8, 16, 16, 24), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2))
CASES = ['fcvit_tiny_1x3x64x96', 'fcvit_tiny_2x3x75x101', 'fcvit_b12_1x3x64x64']


def build(arch=SMALL, seed: int = 0, **kwargs) -> FCViT:
    """A network whose every branch counts: layer scales away from 1e-6."""
    torch.manual_seed(seed)
    network = FCViT(arch, layer_scale_init_value=0.5, **kwargs)
    network.init_weights()
    return network


# Against the authors' implementation.


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', CASES)
def test_golden(case, dtype):
    golden = load(case)
    network = FCViT(case.split('_')[1])
    load_golden_weights(network)
    network.eval().to(dtype)
    names = [name for name, _ in network.named_parameters()]
    assert set(names) == set(golden['param_names'])

    double = dtype == torch.float64
    suffix = '_f64' if double else ''
    outs = network(golden_image(golden['input_spec'], dtype=dtype))
    assert len(outs) == golden['num_outputs']
    for i, out in enumerate(outs):
        tolerance = dict(rtol=1e-10, atol=1e-10) if double else dict(rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.detach(), golden[f'out{i}{suffix}'], **tolerance)

    sum(out.square().mean() for out in outs).backward()
    parameters = dict(network.named_parameters())
    norms = [parameters[name].grad.norm().item() for name in golden['param_names']]
    np.testing.assert_allclose(norms, golden['param_grad_norms_f64'], rtol=1e-9 if double else 2e-4)


@pytest.mark.parametrize('arch', ['tiny', 'b12', 'b24', 'b48'])
def test_keys_shapes_and_parameter_count(arch):
    golden = load(f'fcvit_{arch}_cls_keys')
    network = FCViT(arch)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    expected = json.loads(str(golden['shapes']))
    assert {name: shapes.pop(name) for name in list(golden['only_in_feat'])}
    for name in golden['only_in_cls']:
        del expected[name]
    assert shapes == expected
    assert sum(p.numel() for p in network.parameters()) == golden['feat_param_count']


def test_b48_dense_keys():
    golden = load('fcvit_b48_keys')
    network = FCViT('b48')
    assert set(network.state_dict()) == set(golden['keys'])
    assert sum(p.numel() for p in network.parameters()) == golden['param_count'] == 50_965_056


def test_initial_weights_are_those_of_the_release():
    network = FCViT('b12')
    network.init_weights()
    convolutions = linear = 0
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] ** 2 * part.out_channels / part.groups
            assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert not part.bias.any(), name
            convolutions += 1
        elif isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert not part.bias.any(), name
            linear += 1
    assert (convolutions, linear) == (4 + 9 * 12, 4 * 12)
    scales = [value for name, value in network.named_parameters() if 'layer_scale' in name]
    assert all(value.eq(1e-6).all() for value in scales) and len(scales) == 2 * 12


def test_block_and_global_context_golden():
    golden = load('fcvit_ops')
    x = torch.from_numpy(golden['x'])
    context = GlobalContext(32)
    load_golden_weights(context)
    np.testing.assert_allclose((context(x) - x).detach(), golden['gc_out'], rtol=1e-4, atol=1e-5)
    block = Block(32, int(golden['block_mlp_ratio']))
    assert set(block.state_dict()) == set(golden['block_keys'])
    load_golden_weights(block)
    np.testing.assert_allclose(block(x).detach(), golden['block_out'], rtol=1e-4, atol=1e-5)


# Against the formulas, written out plainly.


@pytest.mark.parametrize('compete', [True, False])
def test_equals_the_plain_formulation_in_value_and_gradients(compete):
    network = build(compete=compete).double()
    x = torch.randn(2, 3, 45, 67, dtype=torch.double)
    reference = PlainFCViT(network)
    ours, expected = network(x), reference(x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(network, ours), gradients(network, expected))


def test_global_context_of_a_single_pixel_is_finite():
    context = GlobalContext(16)
    x = torch.randn(2, 16, 1, 1)
    torch.testing.assert_close(context(x), x + global_context(context, x))
    assert torch.isfinite(context(x)).all()


@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16])
def test_block_is_its_formula(rate, dtype):
    """Layer scale, drop path and the sum go within other passes; what they give is what they give in turn."""
    torch.manual_seed(0)
    block = Block(16, 2, drop_path_rate=rate, layer_scale_init_value=0.5).to(dtype).train()
    x = torch.randn(6, 16, 5, 4, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    out = block(x)
    torch.manual_seed(1)
    branch = F.gelu(block.token_mixer(block.norm1(x)))
    expected = x + block.drop_path(block.layer_scale_1.view(-1, 1, 1) * branch)
    branch = block.channel_mixer(block.norm2(expected))
    expected = expected + block.drop_path(block.layer_scale_2.view(-1, 1, 1) * branch)
    precision = dict(rtol=0.05, atol=0.05) if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out, expected, **precision)
    inputs, mask = [x, *block.parameters()], torch.randn_like(out)
    if dtype == torch.double:
        torch.testing.assert_close(*[torch.autograd.grad(y, inputs, mask) for y in (out, expected)])


def test_block_keeps_no_branch_for_the_gradient_of_its_scale():
    block = Block(64, 2).train()
    x = torch.randn(1, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept = {}

    def keep(tensor):
        if tensor.numel() >= x.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel() // x.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    # What each norm has and gives; the sum with the context, two convolutions, and between the halves GELU; inner maps.
    assert sum(kept.values()) == 2 * 2 + 3 + 1 + 3 + 2 * 2


@pytest.mark.parametrize('training', [False, True])
def test_channel_mixer_in_chunks_equals_the_whole(training, monkeypatch):
    mixer = ChannelMixer(16, 80).double().train(training)
    x = torch.randn(2, 16, 9, 7, dtype=torch.double, requires_grad=training)
    expected = mixer(x)
    monkeypatch.setattr(inverted_bottleneck, 'MAX_HIDDEN_BYTES', 2**12)
    with mock.patch.object(inverted_bottleneck, '_in_chunks', wraps=inverted_bottleneck._in_chunks) as forward:
        with torch.set_grad_enabled(training):
            out = mixer(x)
    assert forward.call_count == 1 and forward.call_args.args[-1] == 20  # 80640 bytes
    torch.testing.assert_close(out, expected)
    if training:
        inputs = [x, *mixer.parameters()]
        weights = torch.randn_like(out)
        gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (out, expected)]
        torch.testing.assert_close(*gradients)


def test_onnx_computes_the_same_with_standard_operators(tmp_path):
    network, x = build().eval(), torch.randn(1, 3, 64, 96)
    torch.onnx.export(network, (x,), tmp_path / 'fcvit.onnx', dynamo=True)
    model = onnx.load(tmp_path / 'fcvit.onnx')
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    outs = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close([torch.from_numpy(out) for out in outs], list(network(x)), rtol=1e-3, atol=1e-4)


# The contract of a backbone.


@pytest.mark.parametrize('size', [(64, 64), (31, 31), (112, 137), (17, 90)])
def test_output_shapes(size):
    network = build().eval()
    outs = network(torch.randn(1, 3, *size))
    assert isinstance(outs, tuple)
    for out, dim, stride in zip(outs, SMALL['embed_dims'], (4, 8, 16, 32)):
        assert out.shape == (1, dim, -(-size[0] // stride), -(-size[1] // stride))


def test_built_from_the_registry_by_its_scoped_name():
    network = ROOT.build(dict(type='mmvisattn.FCViT', arch='tiny', out_indices=(2,)))
    assert isinstance(network, FCViT)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (0, 2), (0,), -1])
def test_every_parameter_has_a_gradient(out_indices):
    network = build(out_indices=out_indices)
    outs = network(torch.randn(2, 3, 64, 64))
    assert len(outs) == len(network.out_indices)
    sum(out.square().mean() for out in outs).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert [name for name, p in network.named_parameters() if p.grad.abs().max() == 0] == []


def test_trains_on_several_processes_where_a_map_is_not_used(tmp_path):
    torch.distributed.init_process_group('gloo', store=FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    try:
        network = DistributedDataParallel(build().train())
        for _ in range(2):  # what the first step has left out, the second refuses
            outs = network(torch.randn(2, 3, 64, 64))
            sum(out.square().mean() for out in outs[1:]).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert {name for name, p in network.module.named_parameters() if p.grad.abs().max() == 0} == {
        'norm0.weight',
        'norm0.bias',
    }


def test_selected_outputs_equal_those_of_the_full_network():
    full = build().eval()
    part = build(out_indices=(0, 2)).eval()
    part.load_state_dict(full.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(part(x), (full(x)[0], full(x)[2]))


def test_checkpointing_gives_the_same_gradients():
    x = torch.randn(2, 3, 64, 64)
    grads = [gradients(network, network(x)) for network in (build(), build(with_cp=True))]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages):
    network = build(frozen_stages=frozen_stages)
    network.train()
    stems = {'patch_embed': 0, 'network.0': 1, 'network.1': 2, 'network.2': 2, 'network.3': 3, 'network.4': 3}
    stems |= {'network.5': 4, 'network.6': 4, 'norm0': 1, 'norm2': 2, 'norm4': 3, 'norm6': 4}
    for name, parameter in network.named_parameters():
        stage = next(stage for stem, stage in stems.items() if name.startswith(stem + '.'))
        assert parameter.requires_grad == (stage > frozen_stages), name
    assert network.patch_embed.norm.training == (frozen_stages < 0)
    before = network.patch_embed.norm.running_mean.clone()
    network(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, network.patch_embed.norm.running_mean) == (frozen_stages >= 0)


def test_norm_eval():
    network = build(norm_eval=True).train()
    batch_norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(batch_norms) == 4 and not any(m.training for m in batch_norms)
    assert network.network[0].training


def test_drop_path_rises_over_the_blocks():
    network = FCViT(SMALL, drop_path_rate=0.4)
    blocks = [block for stage in network.network[::2] for block in stage]
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_layer_depth():
    network = FCViT(SMALL)
    depth = {name: network.get_layer_depth('backbone.' + name, 'backbone.') for name in network.state_dict()}
    assert {n for _, n in depth.values()} == {6}
    expected = {
        'patch_embed.proj.weight': 0,
        'network.0.0.norm1.weight': 1,
        'network.1.proj.weight': 2,
        'network.2.0.layer_scale_1': 2,
        'network.3.norm.bias': 3,
        'network.4.0.norm1.weight': 3,
        'network.4.1.norm1.weight': 3,
        'network.6.0.norm1.weight': 4,
        'norm0.weight': 5,
        'norm6.bias': 5,
    }
    assert {name: depth[name][0] for name in expected} == expected


def test_mixed_precision_stays_near_full():
    network = build().eval()
    x = torch.randn(1, 3, 64, 64)
    expected = network(x)
    with torch.autocast('cpu', torch.bfloat16):
        outs = network(x)
    for out, full in zip(outs, expected):
        assert torch.isfinite(out).all()
        assert (out.float() - full).abs().mean() < 0.05


def test_exports_to_a_graph_of_plain_operators():
    network = build().eval()
    x = torch.randn(1, 3, 64, 64)
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='tinny'), "no arch 'tinny'.*did you mean 'tiny'"),
        (dict(arch=dict(embed_dims=(8, 8), depth=(1, 1))), r"missing \['depths', 'mlp_ratios'\], unknown \['depth'\]"),
        (dict(arch=dict(embed_dims=(8, 8), depths=(1,), mlp_ratios=(2, 2))), 'differ in length'),
        (dict(arch=dict(embed_dims=(10,), depths=(1,), mlp_ratios=(2,))), 'multiple of 8'),
        (dict(out_indices=(0, 4)), 'from 0 to 3'),
        (dict(out_indices=(1, 0)), 'rising'),
        (dict(out_indices=()), 'rising'),
        (dict(frozen_stages=5), 'up to 4'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        FCViT(**kwargs)


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64), (1, 3, 16, 64)])
def test_wrong_input(shape):
    with pytest.raises(UserError, match='FCViT'):
        build()(torch.randn(shape))


def test_small_image_is_fine_where_the_last_stages_are_not_asked_for():
    assert build(out_indices=(0, 1))(torch.randn(2, 3, 16, 16))[1].shape == (2, 16, 2, 2)
