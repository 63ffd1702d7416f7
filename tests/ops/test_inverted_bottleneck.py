from unittest import mock

from mmvisattn.ops import inverted_bottleneck as module
from mmvisattn.ops.depthwise_conv import DepthwiseConv2d
from mmvisattn.ops.inverted_bottleneck import inverted_bottleneck
from mmvisattn.ops.pointwise_conv import PointwiseConv2d

import pytest
import torch
import torch.nn.functional as F
from torch import nn


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList([PointwiseConv2d(6, 20), DepthwiseConv2d(20, 3), PointwiseConv2d(20, 5)]).double()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('limit', [1, 1000, 4000, 2**30])  # single channels, some, a last group of fewer, the whole
def test_equals_the_layers_in_turn(layers, limit, memory_format, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HIDDEN_BYTES', limit)
    x = torch.randn(2, 6, 5, 7, dtype=torch.double).contiguous(memory_format=memory_format).requires_grad_()
    expand, depthwise, project = layers
    out, expected = inverted_bottleneck(x, *layers), project(F.gelu(depthwise(expand(x))))
    torch.testing.assert_close(out, expected)
    inputs, mask = [x, *layers.parameters()], torch.randn_like(expected)
    torch.testing.assert_close(*[torch.autograd.grad(y, inputs, mask) for y in (out, expected)])


@pytest.mark.parametrize('limit', [1000, 2**30])
def test_scale_of_what_goes_out(layers, limit, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HIDDEN_BYTES', limit)
    x = torch.randn(2, 6, 5, 7, dtype=torch.double)
    scale = torch.randn(5, dtype=torch.double, requires_grad=True)
    out, expected = inverted_bottleneck(x, *layers, scale=scale), scale.view(-1, 1, 1) * inverted_bottleneck(x, *layers)
    torch.testing.assert_close(out, expected)
    inputs, mask = [scale, *layers.parameters()], torch.randn_like(expected)
    torch.testing.assert_close(*[torch.autograd.grad(y, inputs, mask) for y in (out, expected)])


def test_a_large_inner_map_never_exists_as_a_whole(layers, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HIDDEN_BYTES', 4 * 2 * 5 * 7 * 8)  # of four channels
    x = torch.randn(2, 6, 5, 7, dtype=torch.double)
    with mock.patch.object(module, 'gelu_linear', wraps=module.gelu_linear) as product:
        inverted_bottleneck(x, *layers)
    assert [call.args[0].shape for call in product.call_args_list] == [(2 * 5 * 7, 4)] * 5


@pytest.mark.parametrize('limit', [1000, 2**30])
def test_dropout(layers, limit, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HIDDEN_BYTES', limit)
    x = torch.randn(2, 6, 5, 7, dtype=torch.double)
    torch.nn.init.zeros_(layers[0].weight)  # all positions alike
    torch.nn.init.ones_(layers[2].weight)
    exact = inverted_bottleneck(x, *layers)
    mean = sum(inverted_bottleneck(x, *layers, dropout=0.5) for _ in range(400)) / 400
    assert not torch.equal(mean, exact)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.5)


@pytest.mark.parametrize('limit', [1000, 2**30])
def test_autocast(layers, limit, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HIDDEN_BYTES', limit)
    layers.float()
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        out = inverted_bottleneck(x, *layers)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), inverted_bottleneck(x, *layers), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('position', range(3))
def test_a_layer_of_another_class_is_called(layers, position):
    class Adapted(type(layers[position])):
        def forward(self, x):
            return super().forward(x) + 1

    layers[position].__class__ = Adapted
    x = torch.randn(2, 6, 5, 7, dtype=torch.double)
    scale = torch.randn(5, dtype=torch.double)
    expand, depthwise, project = layers
    expected = scale.view(-1, 1, 1) * project(F.gelu(depthwise(expand(x))))
    torch.testing.assert_close(inverted_bottleneck(x, *layers, scale=scale), expected)


def test_an_exported_graph_is_in_one_piece(layers, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HIDDEN_BYTES', 1)

    class Network(nn.Module):
        def forward(self, x):
            return inverted_bottleneck(x, *layers)

    network = Network()
    network.layers = layers
    graph = torch.export.export(network, (torch.randn(2, 6, 5, 7, dtype=torch.double),)).graph
    targets = [str(node.target) for node in graph.nodes if node.op == 'call_function']
    assert targets == ['aten.conv2d.default', 'aten.conv2d.default', 'aten.gelu.default', 'aten.conv2d.default']
