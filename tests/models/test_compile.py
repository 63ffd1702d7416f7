"""Every network compiles to one graph, which serves its shape without another compilation."""

from mmvisattn.models.backbones import DefocusRetNet, DefocusViT, FCViT
from mmvisattn.models.layers import DropPath
from mmvisattn.models.necks import FlexAttentionNeck, SimpleFPN

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode

from tests.models.networks import BACKBONES, OTHERS, build

SIZES = [(128, 192), (192, 128), (160, 256), (200, 144), (224, 320), (256, 160)]
NETWORKS = [*BACKBONES, SimpleFPN, FlexAttentionNeck]

all_networks = pytest.mark.parametrize('network', NETWORKS, ids=lambda network: network.__name__)


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def inputs(network, size, batch=2):
    """What it takes for an image of a size."""
    if network not in OTHERS:
        return torch.randn(batch, 3, *size)
    stride16 = [-(-n // 16) for n in size]
    first = torch.randn(batch, 24, *stride16)
    return build(SimpleFPN)([first]) if network is FlexAttentionNeck else [first]


@all_networks
def test_one_graph_and_no_second_compilation(network):
    net, counter = build(network), CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            x = inputs(network, (70, 96))
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
@all_networks
def test_compilations_for_many_sizes_are_few(network):
    net, counter = build(network), CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    with torch.no_grad():
        for size in SIZES:
            x = inputs(network, size)
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 3


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_gradients_are_equal(network):
    net = build(network).train()
    for module in net.modules():
        if hasattr(module, 'explore'):
            module.explore = 0
        if network is FCViT and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    x, grads = torch.randn(2, 3, 64, 64), []
    for run in (net, compiled):
        net.zero_grad()
        sum((out * out.detach().cos()).sum() for out in run(x)).backward()
        grads.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize('network', [DefocusViT, DefocusRetNet], ids=lambda network: network.__name__)
@pytest.mark.parametrize('log_decay', [-8.0, 1.0])
def test_a_decay_that_changes_after_compilation(network, log_decay):
    net = build(network)
    compiled, x = torch.compile(net, backend='aot_eager', fullgraph=True), torch.randn(1, 3, 128, 192)
    with torch.no_grad():
        compiled(x)
        for block in net.blocks:
            block.attn.bandpass.log_decay[0] = log_decay  # far within the range of the fast form, and far beyond it
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_rate_of_drop_path_that_changes_compiles_nothing_anew():
    net = build(DefocusViT, drop_path_rate=0.3).train()
    (path,) = [module for module in net.modules() if isinstance(module, DropPath) and module.drop_prob]
    compiled, x = torch.compile(net, backend='eager', fullgraph=True), torch.randn(4, 3, 64, 64)
    outs = []
    with torch.no_grad():
        for rate in (0.3, 0.6, 0.9):
            path.drop_prob = rate
            with torch._dynamo.config.patch(error_on_recompile=bool(outs)):
                torch.manual_seed(0)
                outs.append(compiled(x)[0])
            torch.manual_seed(0)
            torch.testing.assert_close(outs[-1], net(x)[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outs[0], outs[2])


class Waits(TorchFunctionMode):
    """Counts what makes the program wait for a GPU."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.cpu)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('network', [DefocusViT, DefocusRetNet], ids=lambda network: network.__name__)
def test_the_device_is_waited_for_once(network):
    net, x = build(network, depth=5), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), Waits() as waits:
        net(x)
    assert waits.count == 1


@pytest.mark.slow
@all_networks
def test_inductor_computes_the_same(network):
    net = build(network)
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        x = inputs(network, (64, 96))
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)
