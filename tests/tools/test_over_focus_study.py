import json
from concurrent.futures import ThreadPoolExecutor

from mmvisattn.ops.selective_scan import scan_tokens

import pytest
import torch

from .utils import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis/over_focus_study')


def test_scenes_are_as_their_labels_say(tool, monkeypatch):
    monkeypatch.setattr(tool, 'BLUR', 0.25)  # else some hues are nearer to those of another kind
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


def test_intervals_of_paired_differences(tool, tmp_path, capsys):
    path = tmp_path / 'results.json'
    for row, values in (('vit', (0.5, 0.6, 0.7)), ('vit, decay', (0.6, 0.8, 0.7))):
        for seed, value in enumerate(values):
            tool.keep(path, f'{row}, seed {seed}', dict(figures={'AUC': value, 'AUC, first third': value, 'other': 0}))
    tool.print_tables(path, ['vit', 'vit, decay'], [0, 1, 2], ['AUC'])
    out = capsys.readouterr().out
    assert '| AUC | 0.600 (0.500, 0.600, 0.700) | 0.700 (0.600, 0.800, 0.700) |' in out and 'other' not in out
    # Differences 0.1, 0.2, 0: mean 0.1, deviation 0.1, t of two degrees of freedom 4.303.
    assert '| AUC, first third | +0.100 (-0.148 to +0.348) |' in out


def test_mamba_without_its_filter_forgets_and_turns_nothing(tool):
    """The state is then a sum: what a token was given long ago counts for as much as what it was given just now."""
    torch.manual_seed(0)
    mixer = tool.Probe(tool.ROWS['mamba']).backbone.blocks[0].mixer
    u, delta = torch.rand(1, 150, 128), torch.rand(1, 150, 128)
    ones = torch.ones(1, 150, 16)
    y = scan_tokens(u, delta, -mixer.A_log.exp(), ones, ones)
    torch.testing.assert_close(y, 16 * (u * delta).cumsum(1))
    assert not mixer.freq.any() and not mixer.freq.requires_grad and not mixer.A_log.requires_grad
    kept = tool.Probe(tool.ROWS['mamba, both']).backbone.blocks[0].mixer
    assert kept.freq.any() and kept.freq.requires_grad and kept.A_log.requires_grad


def test_the_study_goes_on_where_it_stopped(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, 'TEST_SCENES', 64)
    monkeypatch.setattr(tool, 'MEASURED_SCENES', 1)
    monkeypatch.setattr(tool, 'LAYERS', (11,))
    # A process that has run a backward, as other tests do, cannot be forked to run one.
    monkeypatch.setattr(tool, 'ProcessPoolExecutor', lambda jobs, context: ThreadPoolExecutor(jobs))
    path = tmp_path / 'results.json'
    command = ['--steps', '3', '--batch', '2', '--results', str(path), '--seeds', '0', '--rows']
    tool.main([*command, 'mamba, both, drop path, auxiliary'])
    first = json.loads(path.read_text())
    figures = first['mamba, both, drop path, auxiliary, seed 0']['figures']
    assert all(0 <= value <= 1 for key, value in figures.items() if 'share' in key or key == 'AUC')
    capsys.readouterr()
    tool.main([*command, 'mamba, both, drop path, auxiliary', 'retnet', 'vit, not causal'])
    out = capsys.readouterr().out
    assert 'mamba, both, drop path, auxiliary, seed 0: ' not in out and 'vit, not causal, seed 0: ' in out
    assert '| figure | mamba, both, drop path, auxiliary | retnet | vit, not causal |' in out
    assert first.items() <= json.loads(path.read_text()).items()
    with pytest.raises(SystemExit):
        tool.main([*command, 'vit, not causal', '--lr', '1'])
    assert 'give another --results' in capsys.readouterr().err
