import json

import pytest
import torch

from .utils import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis/over_focus_study')


def test_scenes_are_as_their_labels_say(tool):
    scenes = tool.draw(16, torch.Generator().manual_seed(0))
    patches = scenes.images.unflatten(2, (14, 16)).unflatten(4, (14, 16)).permute(0, 2, 4, 1, 3, 5)
    middle = patches.flatten(1, 2)[..., 7:9, 7:9].mean((-2, -1))  # (B, L, 3)
    grey = middle.mean(-1, keepdim=True)
    coloured = (middle - grey).norm(dim=-1) > 0.8
    # The hue is the direction on the circle of the three colours.
    x, y = (torch.cos(torch.arange(3) * 2 * torch.pi / 3 + turn) for turn in (0, -torch.pi / 2))
    angle = torch.atan2(middle @ y, middle @ x) % (2 * torch.pi)
    kinds = (angle / (2 * torch.pi / 8)).round().long() % 8
    third = torch.arange(196) * 3 // 196
    for i in range(3):
        for kind in range(8):
            seen = (coloured & (kinds == kind))[:, third == i].sum(1)
            assert torch.equal(seen, scenes.where[:, kind, i])
    assert torch.equal(scenes.present.bool(), scenes.where.sum(-1) > 0)
    assert ((scenes.where > 0).sum(-1) <= 1).all()
    assert 0.3 < scenes.present.mean() < 0.7 and 0.8 < scenes.count.mean() < 1.2


def test_area_under_curve(tool):
    assert tool.area_under_curve(torch.tensor([3.0, 1]), torch.tensor([2.0, 0])) == 0.75


def test_the_study_goes_on_where_it_stopped(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, 'TEST_SCENES', 64)
    monkeypatch.setattr(tool, 'MEASURED_SCENES', 1)
    monkeypatch.setattr(tool, 'LAYERS', (11,))
    path = tmp_path / 'results.json'
    command = ['--steps', '3', '--batch', '2', '--results', str(path), '--seeds', '0', '--rows']
    tool.main([*command, 'retnet, both, drop path, auxiliary'])
    first = json.loads(path.read_text())['results']
    assert all(0 <= value <= 1 for key, value in first.popitem()[1].items() if 'share' in key or 'AUC' in key)
    capsys.readouterr()
    tool.main([*command, 'retnet, both, drop path, auxiliary', 'vit, not causal'])
    out = capsys.readouterr().out
    assert 'retnet, both, drop path, auxiliary, seed 0: ' not in out and 'vit, not causal, seed 0: ' in out
    assert '| figure | retnet, both, drop path, auxiliary | vit, not causal |' in out
    with pytest.raises(SystemExit):
        tool.main([*command, 'vit', '--lr', '1'])
    assert 'give another --results' in capsys.readouterr().err
