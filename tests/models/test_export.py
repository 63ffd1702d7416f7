"""What can be exported, and what is said of the rest."""

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT, FlexViT
from mmvisattn.models.export import is_exported, is_exported_to_onnx, is_open
from mmvisattn.ops.common import EXPORT_IS_TOLD

import pytest
import torch

from tests.models.networks import build

NETWORKS = [DefocusMamba, DefocusViT, DefocusRetNet, FlexViT]
HEIGHT, WIDTH = (torch.export.Dim(name, min=32, max=512) for name in ('height', 'width'))
OPEN_SIZE = ({2: HEIGHT, 3: WIDTH},)
OPEN_BATCH = ({0: torch.export.Dim('batch', min=1, max=16)},)

all_networks = pytest.mark.parametrize('network', NETWORKS, ids=lambda network: network.__name__)


@all_networks
def test_an_open_batch_exports(network):
    model = build(network).double()
    program = torch.export.export(model, (torch.randn(2, 3, 70, 40).double(),), dynamic_shapes=OPEN_BATCH)
    x = torch.randn(3, 3, 70, 40).double()
    torch.testing.assert_close(program.module()(x), model(x))


@all_networks
def test_open_height_and_width_are_refused_in_words(network):
    model, x = build(network), torch.randn(2, 3, 70, 40)
    with pytest.raises(UserError, match=rf'{network.__name__} cannot be exported with open height and width.*`\w+`'):
        torch.export.export(model, (x,), dynamic_shapes=OPEN_SIZE)


def test_onnx_says_the_same(tmp_path):
    """It tries several ways to record a network, and all of them have to fail for the reason to be told."""
    model, x = build(DefocusRetNet, depth=1), torch.randn(2, 3, 64, 48)
    with pytest.raises(Exception, match='cannot be exported with open height and width') as error:
        torch.onnx.export(model, (x,), tmp_path / 'model.onnx', dynamo=True, dynamic_shapes=OPEN_SIZE)
    assert isinstance(error.value.__cause__, UserError)


@pytest.mark.parametrize('dynamic_shapes', [None, OPEN_BATCH])
def test_onnx_names_the_scan(dynamic_shapes, tmp_path):
    model, x = build(DefocusMamba, depth=1), torch.randn(2, 3, 64, 48)
    with pytest.raises(Exception, match='`mmvisattn::selective_scan`.*torch.export.export') as error:
        torch.onnx.export(model, (x,), tmp_path / 'model.onnx', dynamo=True, dynamic_shapes=dynamic_shapes)
    assert isinstance(error.value.__cause__, UserError)


def test_onnx_of_flexvit_has_an_open_batch(tmp_path):
    model, x = build(FlexViT), torch.randn(2, 3, 64, 64)
    # Before torch 2.12 the exporter makes a graph for one image or for several.
    batch = OPEN_BATCH if EXPORT_IS_TOLD else ({0: torch.export.Dim('batch', min=2, max=16)},)
    program = torch.onnx.export(model, (x,), tmp_path / 'flex.onnx', dynamo=True, dynamic_shapes=batch, optimize=False)
    dims = program.model.graph.inputs[0].shape
    assert not isinstance(dims[0], int) and dims[1:] == (3, 64, 64)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('network', [DefocusViT, DefocusRetNet, FlexViT], ids=lambda network: network.__name__)
def test_traced_network_computes_the_same_for_its_size(network):
    model = build(network).double()
    traced = torch.jit.trace(model, torch.randn(2, 3, 70, 40).double())
    for batch in (1, 2):
        x = torch.randn(batch, 3, 70, 40).double()
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_traced_flexvit_fails_at_another_size():
    traced = torch.jit.trace(build(FlexViT), torch.randn(1, 3, 70, 40))
    with pytest.raises(RuntimeError, match='must match the existing size'):
        traced(torch.randn(1, 3, 140, 40))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('record', [torch.jit.trace, lambda model, x: torch.export.export(model, (x,))])
def test_a_threshold_is_refused_in_words(record):
    model = build(FlexViT, select_mode='threshold')
    with pytest.raises(UserError, match="`select_mode='threshold'` cannot be exported: .* set `select_mode='topk'`"):
        record(model, torch.randn(1, 3, 64, 64))


def test_compiling_for_any_size_is_no_export():
    def count(x):
        return x.new_zeros(()) + sum(is_open(n) for n in x.shape) + is_exported() + is_exported_to_onnx()

    compiled = torch.compile(count, backend='eager', dynamic=True, fullgraph=True)
    assert compiled(torch.randn(3, 4)) == compiled(torch.randn(4, 5)) == 0
