import json

import pytest
import torch

from .utils import load_tool


def test_tables_of_ours_and_timms(tmp_path, capsys):
    tool, path = load_tool('analysis/over_focus'), tmp_path / 'focus.json'
    tool.main(['DefocusRetNet:small', 'timm:deit_tiny_patch16_224', '--sizes', '224x224', '--json', str(path)])
    report = json.loads(path.read_text())
    assert [len(rows) for rows in report.values()] == [12, 12]
    assert all(
        0 < value <= 1 for rows in report.values() for row in rows for key, value in row.items() if key != 'layer'
    )
    assert '| layer | field share | field top 5 % | column share |' in capsys.readouterr().out


def test_other_networks_are_answered_in_a_line(capsys):
    with pytest.raises(SystemExit):
        load_tool('analysis/over_focus').main(['timm:resnet18', '--sizes', '64x64'])
    assert 'has no blocks on sequences of one length' in capsys.readouterr().err


def test_an_earlier_token_of_a_causal_network_has_a_field_of_its_past():
    tool = load_tool('analysis/over_focus')
    torch.manual_seed(0)
    network = tool.networks.backbones.DefocusViT(
        dict(embed_dims=16, depth=2, num_heads=2, mlp_ratio=1), 'raster'
    ).eval()
    row, _ = tool.measure(network, torch.randn(1, 3, 64, 64), token=1)
    # One of the fifteen other tokens is before it.
    assert row['field share'] == pytest.approx(1 / 15) and row['field top 5 %'] == pytest.approx(1)
