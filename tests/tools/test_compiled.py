import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tools.analysis import benchmark
from tools.analysis import compiled as tool


class Network(nn.Conv2d):
    """With a forward of its own: older torch does not compile torch's own classes where they are called alone."""

    def forward(self, x):
        return super().forward(x)


NAMES = ['timm:resnet10t', 'timm:resnet14t']
MANY = 3


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The tool with a compiler that compiles nothing."""
    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda run, **options: compile(run, backend='eager'))
    monkeypatch.setattr(tool, 'graphs_of_sizes', lambda *args: MANY)
    path = tmp_path / 'compiled.json'

    def run(*names, step='forward'):
        options = ['--sizes', '32x48', '--batch', '1', '--rounds', '2', '--clock', 'cpu', '--device', 'cpu']
        tool.main([*names, *options, '--step', step, '--json', str(path)])
        return json.loads(path.read_text())

    return run


@pytest.mark.parametrize('step', ['forward', 'train'])
def test_both_forms_are_timed_and_graphs_counted(run, step):
    report = run(NAMES[0], step=step)
    (result,), (table,) = report['results'], report['tables']
    assert (result['graphs'], result['again'], result['many']) == (1, 0, MANY)
    assert all(len(seconds) == 2 for seconds in result['seconds'].values())
    name, *_, ratio, graphs, many, _ = table['rows'][0]
    assert (name, graphs, many) == (NAMES[0], '1', str(MANY))
    assert float(ratio) > 0 and report['clock'] == 'cpu'


@pytest.mark.parametrize(('dynamic', 'graphs'), [(True, 3), (False, 6)])
def test_graphs_of_six_sizes(dynamic, graphs):  # the first, one of any width, one of any size
    args = SimpleNamespace(batch=2, device=torch.device('cpu'), step='train', amp=None, compile=False)
    with torch._dynamo.config.patch(automatic_dynamic_shapes=dynamic):
        assert tool.graphs_of_sizes(Network(3, 4, 3), (64, 96), args) == graphs


@pytest.mark.parametrize('name', ['SimpleFPN:in_channels=16,out_channels=8', 'FlexAttentionNeck:in_channels=32'])
def test_a_neck_takes_the_maps_of_such_images(run, name, monkeypatch):
    shapes = []
    make_step = benchmark.make_step

    def note(network, inputs, args):
        shapes.append([tuple(x.shape) for x in inputs[0]])
        return make_step(network, inputs, args)

    monkeypatch.setattr(benchmark, 'make_step', note)
    (result,) = run(name, step='train')['results']
    assert (result['graphs'], result['again']) == (1, 0)
    pyramid = [(1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3), (1, 32, 1, 2)]
    assert shapes == [[(1, 16, 2, 3)] if 'SimpleFPN' in name else pyramid] * 2


def test_a_run_that_was_stopped_goes_on(run, monkeypatch):
    measure, measured = tool.measure, []

    def stop(name, *args):
        if name == NAMES[1] and not measured.count('stopped'):
            measured.append('stopped')
            raise KeyboardInterrupt
        measured.append(name)
        return measure(name, *args)

    monkeypatch.setattr(tool, 'measure', stop)
    with pytest.raises(KeyboardInterrupt):
        run(*NAMES)
    report = run(*NAMES)
    assert measured == [NAMES[0], 'stopped', NAMES[1]]
    assert [row[0] for row in report['tables'][0]['rows']] == NAMES
    run(*NAMES, step='train')  # another command begins anew
    assert len(measured) == 5
