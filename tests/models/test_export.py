"""What is exported, what it computes where there is no torch, and what is said of the rest."""

import inspect
import json
import subprocess
import sys

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT, FCViT, FlexViT
from mmvisattn.models.export import DEFERRED, is_exported, is_exported_to_onnx, is_open, record, size_step, write_onnx
from mmvisattn.models.necks import FlexAttentionNeck, SimpleFPN

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.networks import BACKBONES, build

OPEN_SIZES = DEFERRED in inspect.signature(torch.export.export).parameters
FAST = (FCViT, DefocusMamba)  # graphs of any size take torch a minute or two for the others
NETWORKS = [DefocusMamba, DefocusViT, DefocusRetNet, FlexViT]
OPEN_BATCH = ({0: torch.export.Dim('batch', min=1, max=16)},)
SIZES = [(1, 192, 256), (2, 256, 192), (3, 320, 256)]  # 12, 12 and 20 cells of FlexViT, 3 chosen of 12 and 5 of 20

# Runs a graph of ONNX where neither torch nor a compiler can be had.
WITHOUT_TORCH = """
import json, os, sys
for name in ('torch', 'mmvisattn', 'onnx'):
    sys.modules[name] = None  # importing it is an error
os.environ['PATH'] = os.environ['CXX'] = ''
import numpy as np, onnxruntime
folder, shapes = sys.argv[1], json.loads(sys.argv[2])
session = onnxruntime.InferenceSession(f'{folder}/network.onnx', providers=['CPUExecutionProvider'])
for i in range(len(shapes)):
    outs = session.run(None, {'images': np.load(f'{folder}/images{i}.npy')})
    np.savez(f'{folder}/outs{i}.npz', *outs)
"""

all_networks = pytest.mark.parametrize('network', NETWORKS, ids=lambda network: network.__name__)


def with_neck(network):
    """The network, and a pyramid of its map behind it where it has one."""
    return build(network) if network is FCViT else nn.Sequential(build(network), build(SimpleFPN, num_outs=4))


@pytest.mark.parametrize(
    'network',
    [pytest.param(network, marks=[] if network in FAST else pytest.mark.slow) for network in BACKBONES],
    ids=lambda network: network.__name__,
)
def test_any_size_with_torch_and_with_onnxruntime_alone(network, tmp_path):
    pytest.importorskip('onnxruntime')
    model = with_neck(network)
    if not OPEN_SIZES:
        with pytest.raises(UserError, match='records no graph of open height and width'):
            record(model, torch.randn(2, 3, 192, 256), smallest=128, largest=1024)
        return
    program = record(model, torch.randn(2, 3, 192, 256), smallest=128, largest=1024)
    write_onnx(program, tmp_path / 'network.onnx', notes=dict(network=network.__name__))
    torch.export.save(program, tmp_path / 'network.pt2')
    module = torch.export.load(tmp_path / 'network.pt2').module()
    images = [torch.randn(batch, 3, height, width) for batch, height, width in SIZES]
    for i, x in enumerate(images):
        np.save(tmp_path / f'images{i}.npy', x.numpy())
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_TORCH, tmp_path, json.dumps(SIZES)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for i, x in enumerate(images):
        with torch.no_grad():
            expected, recorded = model(x), module(x)
        for own, other, foreign in zip(expected, recorded, np.load(tmp_path / f'outs{i}.npz').values(), strict=True):
            torch.testing.assert_close(other, own, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(torch.from_numpy(foreign), own, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_flexattention_neck_of_a_size(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model = nn.Sequential(build(DefocusRetNet, depth=1), build(SimpleFPN, num_outs=4), build(FlexAttentionNeck))
    x = torch.randn(2, 3, 128, 192)
    write_onnx(record(model, x, open_size=False), tmp_path / 'network.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'network.onnx')
    for own, foreign in zip(model(x), session.run(None, {'images': x.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(foreign), own.detach(), rtol=1e-3, atol=1e-4)


def test_open_sizes_are_multiples():
    assert size_step(build(FlexViT)) == 64 and size_step(with_neck(DefocusViT)) == 16
    with pytest.raises(UserError, match='the example is of 192×250 .* multiples of 64'):
        record(build(FlexViT), torch.randn(2, 3, 192, 250), smallest=128)
    with pytest.raises(UserError, match='sides from 256 to 4096'):
        record(build(FlexViT), torch.randn(2, 3, 192, 256))


class Sorts(nn.Module):
    """Has an operator that is none of ONNX."""

    def forward(self, x):
        return torch.linalg.eigvalsh(x[0, 0] @ x[0, 0].mT)


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    program = record(Sorts(), torch.randn(1, 3, 8, 8), open_size=False, open_batch=False)
    with pytest.raises(UserError, match=r'no form of the operator .*linalg_eig') as error:
        write_onnx(program, tmp_path / 'model.onnx')
    assert '\n' not in str(error.value)


def test_mixed_types_of_the_scan_are_refused(tmp_path):
    program = record(build(DefocusMamba, depth=1).double(), torch.randn(1, 3, 64, 64).double(), False, False)
    with pytest.raises(UserError, match='types .*DOUBLE.*; export a network in float32'):
        write_onnx(program, tmp_path / 'model.onnx')


@all_networks
def test_an_open_batch_exports(network):
    model = build(network).double()
    program = torch.export.export(model, (torch.randn(2, 3, 70, 40).double(),), dynamic_shapes=OPEN_BATCH)
    x = torch.randn(3, 3, 70, 40).double()
    torch.testing.assert_close(program.module()(x), model(x))


def test_torch_alone_does_not_know_the_scan(tmp_path):
    """It tries several ways to record a network, and all of them have to fail for the reason to be told."""
    model, x = build(DefocusMamba, depth=1), torch.randn(2, 3, 64, 48)
    with pytest.raises(Exception, match='`mmvisattn::selective_scan`.*write_onnx') as error:
        torch.onnx.export(model, (x,), tmp_path / 'model.onnx', dynamo=True)
    assert isinstance(error.value.__cause__, UserError)


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
@pytest.mark.parametrize('record_one', [torch.jit.trace, lambda model, x: torch.export.export(model, (x,))])
def test_a_threshold_is_refused_in_words(record_one):
    model = build(FlexViT, select_mode='threshold')
    with pytest.raises(UserError, match="`select_mode='threshold'` cannot be exported: .* set `select_mode='topk'`"):
        record_one(model, torch.randn(1, 3, 64, 64))


def test_compiling_for_any_size_is_no_export():
    def count(x):
        return x.new_zeros(()) + sum(is_open(n) for n in x.shape) + is_exported() + is_exported_to_onnx()

    compiled = torch.compile(count, backend='eager', dynamic=True, fullgraph=True)
    assert compiled(torch.randn(3, 4)) == compiled(torch.randn(4, 5)) == 0
