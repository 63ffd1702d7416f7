import argparse
import io
import json
import math
import re
import sys
import time
from contextlib import redirect_stdout
from unittest.mock import Mock

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, FCViT
from mmvisattn.registry import MODELS
from mmvisattn.testing import PlainFCViT, random_inputs

import pytest
import torch
from mmcv.ops import RoIAlign
from torch import nn

from tools.analysis import benchmark as tool
from tools.analysis import measure, networks
from tools.analysis import measurements as reports

from .utils import ARCH, ROOT, run_python

BACKBONE = f"dict(type='mmvisattn.FCViT', arch={ARCH}, out_indices=(0, 1))"
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('configs') / 'tiny.py'
    path.write_text(f"default_scope = 'mmdet'\nmodel = dict(backbone={BACKBONE})\n")
    return str(path)


@pytest.fixture(scope='module')
def measured(config, tmp_path_factory):
    """A report of two networks at three sizes, what was printed with it, and where it lies."""
    folder = tmp_path_factory.mktemp('report')
    sizes = ['--sizes', '48x48', '64x96', '128x128']
    files = ['--json', str(folder / 'report.json'), '--plot', str(folder / 'plot.png')]
    options = [*sizes, *files, '--part', 'backbone', '--rounds', '2', '--step', 'train', '--device', 'cpu']
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(tool, 'PEERS', ('resnet10t',))
        tool.main([config, '--peers', *options])
    return json.loads((folder / 'report.json').read_text()), printed.getvalue().splitlines(), folder


def test_report_holds_all_rounds(measured, config):
    report, _, _ = measured
    assert report['rounds'] == 2 and report['tables'][1]['title'] == 'train, float32, NCHW, 1×3×64×96'
    assert report['machine'].keys() >= {'device', 'threads', 'torch', 'timm', 'mmvisattn', 'date'}
    assert f'{config} --peers --sizes 48x48 64x96 128x128' in report['command']
    assert '--json' not in report['command']
    seen = [(result['name'], *result['size']) for result in report['results']]
    sizes = [(48, 48), (64, 96), (128, 128)]
    assert seen == [(name, *size) for size in sizes for name in (config, 'timm:resnet10t')]
    for result in report['results']:
        assert len(result['seconds']) == 2 and all(0 < second < 10 for second in result['seconds'])
        assert result['parameters'] == (report['results'][0 if result['name'] == config else 1]['parameters'])


def test_tables_and_picture(measured, config):
    report, lines, folder = measured
    assert (folder / 'plot.png').read_bytes().startswith(b'\x89PNG')
    (header,) = {line for line in lines if line.startswith('| network | M parameters')}
    assert f'time / {config}' in header
    rows = [line.split(' | ') for line in lines if line.startswith(f'| {config} |')]
    assert [row[3] for row in rows[:3]] == ['1.00'] * 3
    assert 'train, float32, NCHW, 1×3×64×96' in lines
    title = next(i for i, line in enumerate(lines) if line.startswith('Growth'))
    assert re.fullmatch(r'\| timm:resnet10t \| -?\d\.\d\d \(.*\) \| .* \|', lines[title + 5])


def test_report_holds_what_is_printed(measured):
    _, lines, folder = measured
    assert list(reports.lines(reports.read(folder / 'report.json'))) == lines


def test_figures_of_a_report(capsys, monkeypatch):
    def measure(names, size, args):
        growth = {'FCViT:a': size[0] ** 2 / 1e4, 'FCViT:b': size[0] ** 4 / 1e8}
        return [
            dict(name=name[-1], size=size, parameters=10**6, seconds=[k * s for s in (1, 4, 2)], peak_mib=k * 100)
            for name, k in growth.items()
        ]

    monkeypatch.setattr(tool, 'measure', measure)
    tool.main(['FCViT:a', 'FCViT:b', '--batch', '2', '--sizes', '100x100', '200x200', '300x300'])
    out = capsys.readouterr().out
    assert '| b | 1.0 | 32000.0 (16000.0–64000.0) | 4.00 | 0.06 | 1600 |' in out  # 200×200
    assert '| a | 1.00 (1.00–1.00) | 1.00 |' in out and '| b | 2.00 (2.00–2.00) | 2.00 |' in out


def test_steps_take_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    times = measure.times_in_turn(steps, 2, CPU)
    assert ''.join(calls) == 'abc' * (measure.WARM_UP_ROUNDS + 2)
    assert [len(values) for values in times.values()] == [2, 2, 2]


def test_peak_memory_is_that_of_the_step():
    def step() -> None:
        torch.ones(2**22).sum()  # 16 MiB

    step()
    peak = measure.peak_memory(step, CPU)
    assert 15 < peak < 18 if sys.platform == 'linux' else math.isnan(peak)


def make_args(**kwargs) -> argparse.Namespace:
    defaults = dict(step='train', amp=None, compile=False, device=CPU)
    return argparse.Namespace(**{**defaults, **kwargs})


def test_training_step_reaches_every_parameter():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4))
    reached = []
    for name, parameter in network.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: reached.append((name, p.grad.abs().max().item()))
        )
    step = tool.make_step(network, (torch.randn(2, 3, 5, 5),), make_args())
    step()
    assert {name for name, size in reached if size > 1e-3} == {name for name, _ in network.named_parameters()}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training


def test_settings_of_a_step():
    seen = []
    network = nn.Conv2d(3, 4, 1)
    network.register_forward_hook(lambda *args: seen.append((args[2].dtype, torch.is_grad_enabled(), network.training)))
    tool.make_step(network, (torch.randn(1, 3, 4, 4),), make_args(step='forward', amp='bfloat16'))()
    tool.make_step(network, (torch.randn(1, 3, 4, 4),), make_args())()
    assert seen == [(torch.bfloat16, False, False), (torch.float32, True, True)]


WHOLE = {
    'detector': f"""
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
default_scope = 'mmdet'
model = dict(
    backbone=dict(_delete_=True, type='mmvisattn.FCViT', arch={ARCH}),
    neck=dict(in_channels=[16, 16, 32, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
""",
    'segmentor': f"""
_base_ = 'mmseg::_base_/models/fpn_r50.py'
default_scope = 'mmseg'
model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, type='mmvisattn.FCViT', arch={ARCH}),
    neck=dict(in_channels=[16, 16, 32, 32], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16),
)
""",
    'two stages': f"_base_ = '{ROOT}/configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py'\n",
}


@pytest.mark.parametrize('kind', WHOLE)
def test_whole_models_train_and_infer(kind, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(WHOLE[kind])
    network = networks.build(str(config), 'model', (64, 96))
    inputs = random_inputs(network, 2, (64, 96), CPU)
    seen = {}
    network.register_forward_hook(lambda module, args, output: seen.update(output=output))
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    tool.make_step(network, inputs, make_args())()
    losses = {name: value for name, value in seen['output'].items() if 'loss' in name}
    assert len(losses) == {'detector': 2, 'segmentor': 1, 'two stages': 5}[kind]
    if kind == 'two stages':
        assert losses['loss_mask'] > 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    tool.make_step(network, inputs, make_args(step='forward'))()
    assert not isinstance(seen['output'], dict)


def test_parts_of_a_config(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(WHOLE['segmentor'])
    neck = networks.build(str(config), 'neck', (64, 64))
    assert [tuple(out.shape[1:]) for out in neck(torch.randn(1, 3, 64, 64))] == [
        (16, 16 >> i, 16 >> i) for i in range(4)
    ]
    backbone = networks.build(str(config), 'backbone', (64, 64))
    assert [out.shape[1] for out in backbone(torch.randn(1, 3, 64, 64))] == [16, 16, 32, 32]


def test_weights_are_initialised_and_none_are_fetched(tmp_path, monkeypatch):
    class LateInit(FCViT):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.level_embed = nn.Parameter(torch.full((4,), math.nan))

        def init_weights(self):
            super().init_weights()
            nn.init.normal_(self.level_embed)

    monkeypatch.setitem(MODELS.module_dict, 'LateInit', LateInit)
    config = tmp_path / 'config.py'
    backbone = BACKBONE.replace('FCViT', 'LateInit')
    inits = "[dict(type='Pretrained', checkpoint='nowhere.pth'), dict(type='Constant', layer='Conv2d', val=3)]"
    config.write_text(f"default_scope = 'mmdet'\nmodel = dict(backbone={backbone[:-1]}, init_cfg={inits}))\n")
    network = networks.build(str(config), 'backbone', (64, 64))
    assert network.level_embed.isfinite().all()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and all((module.weight == 3).all() for module in convolutions)


def test_names_of_backbones():
    with torch.device('meta'):
        network = networks.build(
            'DefocusMamba:small,token_order=raster,out_indices=-1,drop_path_rate=0.1', 'model', (1, 1)
        )
        assert isinstance(network, DefocusMamba) and network.patch_embed.window is None
        assert networks.build('FCViT', 'model', (1, 1)).depths == (2, 2, 6, 2)
        stock = networks.build('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 'model', (1, 1))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in stock.modules())
    assert stock.num_classes == 19


@pytest.mark.parametrize('name', ['FCViT:b12', 'DefocusMamba:small,token_order=raster'])
def test_reference_of_a_backbone_computes_the_same(name):
    torch.manual_seed(0)
    reference = networks.build(f'reference:{name}', 'model', (64, 64)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(reference(x), reference.network(x), rtol=1e-4, atol=1e-4)


def test_reference_of_a_model_has_that_of_its_backbone(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(WHOLE['segmentor'])
    network = networks.build(f'reference:{config}', 'model', (64, 64))
    assert isinstance(network.backbone, PlainFCViT)
    tool.make_step(network, random_inputs(network, 2, (64, 64), CPU), make_args())()


def test_reference_of_a_detector_has_the_roi_align_of_torchvision():
    network = networks.build(f'reference:{ROOT}/configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py', 'model', (64, 64))
    layers = [module for module in network.modules() if isinstance(module, RoIAlign)]
    assert len(layers) == 8 and all(layer.use_torchvision for layer in layers)


@pytest.mark.parametrize('peer', tool.PEERS)
def test_peers_take_any_size(peer):
    with torch.device('meta'):
        network = networks.build(f'timm:{peer}', 'model', (96, 160)).eval()
        (images,) = random_inputs(network, 2, (96, 160), torch.device('meta'))
        assert network(images).shape[0] == 2
    assert 20e6 < sum(parameter.numel() for parameter in network.parameters()) < 30e6


ERRORS = {
    'far name': (['nothing'], ["'nothing' is no network", 'give a config file']),
    'near name': (['FCVit:b12'], ["did you mean 'FCViT'?"]),
    'name of timm': (['resnet50'], ["did you mean 'timm:resnet50'?"]),
    'model of timm': (['timm:resnet5'], ["has no 'resnet5'", 'did you mean']),
    'arch': (['FCViT:b21'], ["no arch 'b21'", 'did you mean']),
    'option': (['FCViT:b12,drop_path=0.1'], ["no option 'drop_path'", "did you mean 'drop_path_rate'"]),
    'form of an option': (['FCViT:b12,drop_path_rate'], ['FCViT:ARCH,OPTION=VALUE']),
    'config': (['configs/nowhere/x.py'], ['there is no folder']),
    'toolbox': (['mmpose::x.py'], ["one of ['mmdet', 'mmseg']"]),
    'part': (['{config}', '--part', 'neck'], ['has no neck', '--part']),
    'reference': (['reference:timm:resnet50'], ['plain formulations of FCViT and DefocusMamba alone']),
    'size': (['FCViT:b12', '--sizes', '512'], ["'512' is not of the form HxW", '800x1344']),
    'rounds': (['FCViT:b12', '--rounds', '0'], ["'0' is not an integer from 1"]),
    'device': (['FCViT:b12', '--device', 'gpu'], ["no device 'gpu'"]),
    'nothing': ([], ['required: NAME']),
    'folder': (['FCViT:b12', '--json', 'no/such.json'], ['cannot be written', "no folder 'no'"]),
    'picture': (['FCViT:b12', '--plot', 'x.doc'], ['.png']),
}


@pytest.mark.parametrize('case', ERRORS)
def test_wrong_arguments(case, config, capsys):
    arguments, words = ERRORS[case]
    with pytest.raises(SystemExit) as exit_info:
        tool.main([argument.replace('{config}', config) for argument in arguments])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert 'error: ' in line and all(word in line for word in words), line
    assert not captured.out


def test_gpu_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    with pytest.raises(SystemExit) as exit_info:
        tool.main(['FCViT:b12', '--device', 'cuda'])
    assert exit_info.value.code == 2
    assert 'torch sees no GPU' in capsys.readouterr().err


def test_errors_of_names_are_errors_of_the_user(config):
    with pytest.raises(UserError):
        networks.build(config, 'neck', (64, 64))


def test_memory_alone(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'return_pages', freed := Mock())  # it would slow this process down for good
    words = [config, '--part', 'backbone', '--sizes', '48x48', '--memory-only', '--json', str(tmp_path / 'm.json')]
    tool.main(words)
    (table,) = json.loads((tmp_path / 'm.json').read_text())['tables']
    assert table['columns'] == ['network', 'M parameters', 'peak MiB'] and float(table['rows'][0][2]) >= 0
    freed.assert_called_once_with()


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is told by Linux')
def test_what_is_freed_is_returned(tmp_path):
    (tmp_path / 'peak.py').write_text("""
import torch
from tools.analysis.measure import peak_memory, return_pages

def step():
    small = []
    for size in (20, 10, 5, 15, 25, 30):  # MiB, in turn; a block of 1 MiB after each stays
        torch.ones(size * 2**18)
        small.append(torch.ones(2**18))

return_pages()
step()
print(peak_memory(step, torch.device('cpu')))
""")
    peak = float(run_python(tmp_path / 'peak.py').stdout)
    assert 34 < peak < 38  # the largest, and of the small ones five or six


def test_times_of_the_processor_leave_waiting_out():
    seconds = {
        clock: measure.times_in_turn({'': lambda: time.sleep(0.2)}, 1, CPU, clock)[''] for clock in measure.CLOCKS
    }
    assert seconds['wall'][0] >= 0.2 > 10 * seconds['cpu'][0]
