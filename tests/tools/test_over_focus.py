import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from .utils import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis/over_focus')


@pytest.fixture
def network(tool):
    torch.manual_seed(0)
    arch = dict(embed_dims=16, depth=2, num_heads=2, mlp_ratio=1)
    return tool.networks.backbones.DefocusViT(arch, 'raster').eval()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'scene.png'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8))
    return str(path)


def test_tables_of_ours_and_timms(tool, tmp_path, capsys):
    path = tmp_path / 'focus.json'
    tool.main(['DefocusRetNet:small', 'timm:deit_tiny_patch16_224', '--sizes', '96x96', '--json', str(path)])
    ours, timms = json.loads(path.read_text()).values()
    assert [len(ours['layers']), len(timms['layers'])] == [12, 12]
    rows = ours['layers'] + timms['layers']
    assert all(0 < value <= 1 for row in rows for key, value in row.items() if key != 'layer')
    assert len(ours['filters']) == 12 and not timms['filters']
    # e^λ of the six heads at the start: 1 − 2⁻⁵, …, over the scale of λ.
    rates = (1 - 2.0 ** -(5 + torch.arange(6.0))).log() / 4.57
    torch.testing.assert_close(torch.tensor(ours['filters'][0]['λ']), rates)
    out = capsys.readouterr().out
    assert '| layer | field share | field top 5 % | column share | diversity |' in out
    assert '| layer | λ | θ | half-power width |' in out


def test_windows_of_swin(tool, capsys):
    """Behind a mask a window is not concentrated, as its tokens see no others; at random weights attention is even."""
    tool.main(['timm:swin_tiny_patch4_window7_224', '--sizes', '64x64'])
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines() if line[2:3].isdigit()]
    assert len(rows) == 12 and all(float(row[3]) > 0.95 for row in rows)


def test_other_networks_are_answered_in_a_line(tool, capsys):
    for name in ('timm:resnet18', 'FCViT:tiny'):
        with pytest.raises(SystemExit):
            tool.main([name, '--sizes', '64x64'])
        assert 'has no blocks of tokens' in capsys.readouterr().err


def test_arguments_that_do_not_go_together(tool, capsys):
    for flags, answer in [
        (['timm:deit_tiny_patch16_224', '--checkpoint', 'x.pth'], '--checkpoint is for one network; there are 2 names'),
        (['--out-dir', 'x'], '--out-dir: there is nothing to draw over; give --images'),
        (['--loss', '2'], "--loss: 'DefocusViT:small' has no training loss; give a config"),
    ]:
        with pytest.raises(SystemExit):
            tool.main(['DefocusViT:small', *flags])
        assert answer in capsys.readouterr().err


def test_an_earlier_token_of_a_causal_network_has_a_field_of_its_past(tool, network):
    (row, _), fields = tool.measure(network, torch.randn(1, 3, 64, 64), token=1)
    # One of the fifteen other tokens is before it.
    assert row['field share'] == pytest.approx(1 / 15) and row['field top 5 %'] == pytest.approx(1)
    assert fields[0][0].nonzero().tolist() == [[0]]


def test_a_mean_of_all_tokens_is_not_concentrated(tool):
    """Every token gets the sum of the images' patches: all of the others count alike, in each block and head."""

    class Mean(nn.Module):
        num_heads = 2

        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4, bias=False)
            nn.init.eye_(self.proj.weight)

        def forward(self, x):
            return self.proj(x.mean(1, keepdim=True).expand_as(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Mean()

        def forward(self, x):
            return x + self.attn(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x):
            return self.blocks(torch.cat((x, x[:, :1]), 1).flatten(2).transpose(1, 2))

    rows, _ = tool.measure(Network(), torch.rand(2, 3, 5, 4) + 1)
    for row in rows:
        assert row['field share'] == pytest.approx(1) and row['field top 5 %'] == pytest.approx(1 / 19)
        assert row['column share'] == pytest.approx(1) and row['diversity'] == pytest.approx(0, abs=1e-6)


def test_trained_weights_own_images_and_pictures(tool, network, picture, tmp_path, capsys):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    checkpoint, out_dir = tmp_path / 'trained.pth', tmp_path / 'out'
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in network.state_dict().items()}), checkpoint)
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmseg'\nmodel = dict(backbone=dict(type='mmvisattn.DefocusViT', token_order='raster', "
        'arch=dict(embed_dims=16, depth=2, num_heads=2, mlp_ratio=1)))\n'
    )
    words = [str(config), '--images', picture, '--sizes', '64x96', '--json', str(tmp_path / 'focus.json')]
    reports = []
    for flags in ([], ['--checkpoint', str(checkpoint), '--out-dir', str(out_dir)]):
        tool.main([*words, *flags])
        (report,) = json.loads((tmp_path / 'focus.json').read_text()).values()
        reports.append(report['layers'])
    expected, fields = tool.measure(network, tool.normalise(tool.read_images([picture], (64, 96))))
    assert reports[1] == [{key: pytest.approx(value) for key, value in row.items()} for row in expected]
    assert reports[0] != reports[1]
    (target,) = out_dir.iterdir()
    assert str(target) in capsys.readouterr().out
    sheet = cv2.imread(str(target))
    assert sheet.shape[1] > 3 * tool.PANEL and sheet.std() > 5
    # The map of a layer goes row by row: in a network of one layer more tokens would not see the last.
    drawn = tool.draw_fields(network, np.full((64, 96, 3), 128, np.uint8), [torch.arange(24.0) ** 4], [0.5])
    panel = drawn[-100:, -tool.PANEL :].astype(int)
    bright = panel[..., 1]  # viridis: from violet to yellow
    assert bright[-20:, -20:].mean() > bright[:20, :20].mean() + 50


def test_the_gradient_map_of_a_training_loss(tool, seg_config, tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{seg_config}'\n"
        "model = dict(backbone=dict(_delete_=True, type='mmvisattn.DefocusViT', token_order='raster', "
        'arch=dict(embed_dims=16, depth=2, num_heads=2, mlp_ratio=1)), '
        "neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=16, out_channels=16, num_outs=4))\n"
    )
    path = tmp_path / 'focus.json'
    tool.main([str(config), '--loss', '2', '--sizes', '64x64', '--json', str(path)])
    (report,) = json.loads(path.read_text()).values()
    assert '| gradient share | gradient top 5 % |' in capsys.readouterr().out

    subject = tool.Subject(str(config))
    grads = []
    subject.backbone.blocks[1].register_full_backward_hook(lambda block, by_input, by_output: grads.append(by_input[0]))
    torch.manual_seed(0)
    np.random.seed(0)
    dataset = tool.DATASETS.build(subject.cfg.train_dataloader.dataset)
    for index in range(2):
        data = subject.model.data_preprocessor(tool.pseudo_collate([dataset[index]]), True)
        sum(value for key, value in subject.model(**data, mode='loss').items() if 'loss' in key).backward()
    shares = [tool.effective_share(grad.norm(dim=-1)).item() for grad in grads]
    assert report['layers'][1]['gradient share'] == pytest.approx(sum(shares) / 2, rel=1e-4)
