from functools import partial
from types import SimpleNamespace

from mmvisattn.ops import depthwise_conv
from mmvisattn.ops.common import EXPORT_IS_TOLD
from mmvisattn.ops.depthwise_conv import DepthwiseConv2d, depthwise_conv2d, interface

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch.utils.flop_counter import FlopCounterMode

CASES = [
    # batch, channels, height, width, kernel, padding
    (2, 5, 9, 12, 11, 5),
    (1, 8, 16, 16, 7, 3),
    (3, 4, 4, 5, 11, 5),  # a map smaller than the kernel
    (2, 3, 13, 10, 7, 0),
    (2, 3, 6, 7, 7, 9),  # more padding than the kernel reaches
    (2, 4, 8, 7, 5, 2),
    (2, 6, 8, 8, 3, 1),
]


@pytest.fixture
def used(monkeypatch):
    """Counts how often our own weight gradient ran, so that a test cannot pass on torch's by mistake."""
    calls = []
    original = interface.torch_backend.weight_gradient
    counting = lambda *args: (calls.append(1), original(*args))[1]  # noqa: E731
    monkeypatch.setattr(interface.torch_backend, 'weight_gradient', counting)
    return calls


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('case', CASES)
def test_equals_torch_in_value_and_gradients(case, memory_format, used):
    B, C, H, W, k, padding = case
    torch.manual_seed(0)
    x = torch.randn(B, C, H, W, dtype=torch.double).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(C, 1, k, k, dtype=torch.double, requires_grad=True)
    bias = torch.randn(C, dtype=torch.double, requires_grad=True)
    out = depthwise_conv2d(x, weight, bias, padding)
    expected = F.conv2d(x, weight, bias, padding=padding, groups=C)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(out, (x, weight, bias), grad)
    theirs = torch.autograd.grad(expected, (x, weight, bias), grad)
    torch.testing.assert_close(ours, theirs)
    assert ours[1].is_contiguous()  # a gradient of other strides than its parameter costs DDP a copy
    assert len(used) == (k >= depthwise_conv.MIN_KERNEL_SIZE)


def test_first_and_second_derivatives(used):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 1, 7, 7, dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: depthwise_conv2d(*args, 3), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *args: depthwise_conv2d(*args, 3), (x, weight, bias))
    assert used


def test_non_contiguous_input_and_no_bias():
    x = torch.randn(2, 9, 4, 10).transpose(1, 2)[..., ::2].requires_grad_()
    weight = torch.randn(4, 1, 7, 7, requires_grad=True)
    out = depthwise_conv2d(x, weight, padding=3)
    torch.testing.assert_close(out, F.conv2d(x, weight, padding=3, groups=4))
    out.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_empty_batch():
    conv = DepthwiseConv2d(4, 11)
    out = conv(torch.randn(0, 4, 6, 6))
    assert out.shape == (0, 4, 6, 6)
    out.sum().backward()
    assert (conv.weight.grad == 0).all()


@pytest.mark.parametrize('frozen', ['weight', 'input'])
def test_only_the_gradients_that_are_needed(frozen):
    x = torch.randn(2, 4, 8, 8, requires_grad=frozen != 'input')
    conv = DepthwiseConv2d(4, 7).requires_grad_(frozen != 'weight')
    conv(x).sum().backward()
    assert (x.grad is None) == (frozen == 'input')
    assert (conv.weight.grad is None) == (frozen == 'weight')


def test_mixed_precision_on_the_cpu(used):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 4, 8, 8), (4, 1, 7, 7), (4,))]
    with torch.autocast('cpu', torch.bfloat16):
        out = depthwise_conv2d(*inputs, 3)
    assert out.dtype == torch.bfloat16
    expected = F.conv2d(*inputs, padding=3, groups=4)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(out, inputs, grad.bfloat16())
    assert used
    for a, e in zip(grads, torch.autograd.grad(expected, inputs, grad)):
        assert a.dtype == torch.float32
        assert (a - e).abs().max() <= 0.02 * e.abs().max()


def test_types_that_mixed_precision_leaves_alone():
    inputs = [torch.randn(shape, dtype=torch.double) for shape in ((2, 4, 8, 8), (4, 1, 7, 7), (4,))]
    with torch.autocast('cpu', torch.bfloat16):
        assert depthwise_conv2d(*inputs, 3, backend='torch').dtype == torch.double
        with pytest.raises(ValueError, match='one type'):
            depthwise_conv2d(inputs[0], inputs[1].float(), backend='torch')


@pytest.mark.parametrize('backend', ['auto', 'torch'])
@pytest.mark.parametrize('strict', [False, True])
def test_exported_graph_shows_a_plain_convolution(backend, strict):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = DepthwiseConv2d(4, 11)

        def forward(self, x):
            return depthwise_conv2d(x, self.conv.weight, self.conv.bias, 5, backend=backend)

    program = torch.export.export(Network(), (torch.randn(1, 4, 12, 12),), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    told = EXPORT_IS_TOLD or not strict  # else the graph needs the package where it is run
    assert targets == ['aten.conv2d.default' if told else 'mmvisattn.depthwise_conv2d.default']


def test_traced_graph_shows_a_plain_convolution():
    conv = DepthwiseConv2d(4, 11)
    graph = torch.jit.trace(conv, torch.randn(1, 4, 12, 12)).inlined_graph
    assert 'aten::_convolution' in str(graph) and 'mmvisattn::' not in str(graph)


@pytest.mark.parametrize('dynamo', [True, False])
def test_onnx_shows_a_plain_convolution_that_computes_the_same(dynamo, tmp_path):
    conv, x = DepthwiseConv2d(4, 11), torch.randn(1, 4, 12, 13)
    torch.onnx.export(conv, (x,), tmp_path / 'conv.onnx', dynamo=dynamo)
    model = onnx.load(tmp_path / 'conv.onnx')
    assert [(node.domain, node.op_type) for node in model.graph.node] == [('', 'Conv')]
    (out,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), conv(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('backend', 'shows_operator'), [('auto', True), ('native', False), ('torch', True)])
def test_compiles_in_one_graph(backend, shows_operator):
    graphs = []

    def compiler(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    conv = partial(depthwise_conv2d, padding=3, backend=backend)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 8, 9), (3, 1, 7, 7), (3,))]
    torch.compiler.reset()
    out = torch.compile(conv, backend=compiler, fullgraph=True)(*inputs)
    assert ('mmvisattn' in graphs[0]) == shows_operator and len(graphs) == 1
    torch.testing.assert_close(out, conv(*inputs))


@pytest.mark.parametrize('autocast', [False, True])
def test_compiled_gradients(autocast, used):
    conv = partial(depthwise_conv2d, padding=3, backend='torch')
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 8, 9), (3, 1, 7, 7), (3,))]
    torch.compiler.reset()
    grads = []
    for function in (torch.compile(conv, backend='aot_eager', fullgraph=True), conv):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            out = function(*inputs)
        assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
        grads.append(torch.autograd.grad(out.float().square().sum(), inputs))
        assert used
        used.clear()
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_operators_declare_what_they_do(memory_format):
    torch.manual_seed(0)
    x, grad = (torch.randn(2, 3, *size).contiguous(memory_format=memory_format) for size in ((8, 9), (6, 8)))
    weight, bias = torch.randn(3, 1, 5, 4), torch.randn(3)
    arguments = {
        'depthwise_conv2d': (x, weight, bias, 1, 'torch'),
        'depthwise_conv2d_input': (grad, weight, 1, 'torch'),
        'depthwise_conv2d_weight': (grad, x, 1, 'torch'),
    }
    for name, args in arguments.items():
        args = [arg.clone().requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in args]
        torch.library.opcheck(getattr(torch.ops.mmvisattn, name).default, args)


def test_meta_tensors():
    x = torch.randn(2, 3, 8, 9, device='meta', requires_grad=True)
    out = depthwise_conv2d(x, torch.randn(3, 1, 7, 7, device='meta'), padding=2, backend='torch')
    assert out.shape == (2, 3, 6, 7) and out.device.type == 'meta'
    out.sum().backward()
    assert x.grad.shape == x.shape


def test_seen_by_a_flop_counter():
    with FlopCounterMode(display=False) as counter:
        depthwise_conv2d(torch.randn(1, 3, 8, 9), torch.randn(3, 1, 7, 7), padding=2, backend='torch')
    assert counter.get_total_flops() == 2 * 3 * 6 * 7 * 7**2


@pytest.mark.parametrize('backend', ['native', 'torch'])
@pytest.mark.parametrize('kernel', [(4, 6), (2, 1), (3, 3), (1, 1)])
def test_any_kernel_size(backend, kernel):
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((2, 3, 7, 8), (3, 1, *kernel), (3,))]
    out = depthwise_conv2d(*inputs, 1, backend=backend)
    expected = F.conv2d(*inputs, padding=1, groups=3)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, inputs, grad) for y in (out, expected))
    torch.testing.assert_close((out, *ours), (expected, *theirs))


CUDA = dict(device='cuda', grad=True, layout=torch.channels_last, kernel=7, broken=None)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (dict(), 'triton'),
        (dict(grad=False), 'triton'),
        (dict(kernel=5), 'triton'),
        (dict(kernel=3), 'native'),
        (dict(layout=torch.contiguous_format), 'native'),
        (dict(broken='it is away'), 'native'),
        (dict(device='cpu'), 'torch'),
        (dict(device='cpu', layout=torch.contiguous_format), 'torch'),
        (dict(device='cpu', kernel=3), 'native'),
        (dict(device='cpu', grad=False), 'native'),
        (dict(device='meta'), 'native'),
    ],
)
def test_auto_is_a_rule(monkeypatch, change, expected):
    case = CUDA | change
    monkeypatch.setattr(interface.triton_support, 'unavailable_reason', lambda: case['broken'])
    x = torch.empty(2, 3, 8, 9, device='meta').contiguous(memory_format=case['layout'])
    weight = torch.empty(3, 1, case['kernel'], case['kernel'], requires_grad=case['grad'])
    x = SimpleNamespace(device=SimpleNamespace(type=case['device']), stride=x.stride)  # there need be no such device
    assert interface._default_backend(x, weight) == expected


def test_schemas():
    operators = torch.ops.mmvisattn
    assert [
        str(getattr(operators, name).default._schema)
        for name in ('depthwise_conv2d', 'depthwise_conv2d_input', 'depthwise_conv2d_weight')
    ] == [
        'mmvisattn::depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, SymInt padding, str backend) -> Tensor',
        'mmvisattn::depthwise_conv2d_input(Tensor grad, Tensor weight, SymInt padding, str backend) -> Tensor',
        'mmvisattn::depthwise_conv2d_weight(Tensor grad, Tensor x, SymInt padding, str backend) -> Tensor',
    ]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(x=torch.randn(3, 8, 9)), ['x must be (B, C, H, W)', '(3, 8, 9)']),
        (dict(weight=torch.randn(4, 1, 7, 7)), ['weight must be (C, 1, k, l) with C = 3', '(4, 1, 7, 7)']),
        (dict(weight=torch.randn(3, 3, 7, 7)), ['weight must be (C, 1, k, l)']),
        (dict(bias=torch.randn(4)), ['bias must be (C,) = (3,)', '(4,)']),
        (dict(padding=-1), ['padding must not be negative', '-1']),
        (dict(padding=0, x=torch.randn(2, 3, 6, 9)), ['(7, 7) does not fit', '(6, 9)']),
        (dict(padding=4, x=torch.randn(2, 3, 0, 9)), ['(7, 7) does not fit', '(0, 9)']),
        (dict(x=torch.ones(2, 3, 8, 9, dtype=torch.long)), ['x must be of one of the types', 'int64']),
        (dict(weight=torch.randn(3, 1, 7, 7, dtype=torch.double)), ['one type', 'float32', 'float64']),
        (dict(weight=torch.randn(3, 1, 7, 7, device='meta')), ['one device', 'meta']),
        (dict(backend='tritn'), ['unknown backend', "did you mean 'triton'"]),
        (dict(backend='triton'), ["'triton' takes tensors on 'cuda'", "'cpu'"]),
    ],
)
def test_wrong_arguments(change, words):
    arguments = dict(x=torch.randn(2, 3, 8, 9), weight=torch.randn(3, 1, 7, 7), bias=torch.randn(3), padding=3)
    with pytest.raises(ValueError) as error:
        depthwise_conv2d(**arguments | change)
    assert all(word in str(error.value) for word in words), error.value


def test_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr(interface.triton_support, 'unavailable_reason', lambda: 'it is away')
    assert depthwise_conv.available_backends() == {'native': None, 'torch': None, 'triton': 'it is away'}
    with pytest.raises(RuntimeError, match='it is away'):
        depthwise_conv2d(
            torch.randn(1, 2, 8, 8, device='meta'), torch.randn(2, 1, 7, 7, device='meta'), backend='triton'
        )
