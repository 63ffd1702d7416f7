import dataclasses
import json
import re

import pytest

from .conftest import load_tool

study_tool = load_tool('analysis/mini_study')
Study = study_tool.Study
SIZES = ['model.backbone.arch.depth=2', 'model.backbone.arch.embed_dims=16', 'model.neck.in_channels=16']


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study of the filter with a tiny network, few scenes and two steps."""
    data = tmp_path / 'mini'
    root = data / 'ade/ADEChallengeData2016'
    study = study_tool.STUDIES['filter']
    study = dataclasses.replace(
        study,
        variants={name: study.variants[name] for name in ('decay and rotation', 'neither')},
        options=[
            *(*SIZES, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=2'),
            *(f'{name}_dataloader.dataset.data_root={root}' for name in ('train', 'val')),
            *(f'{name}_dataloader.num_workers=0' for name in ('train', 'val')),
            *(f'{name}_dataloader.persistent_workers=False' for name in ('train', 'val')),
        ],
        data=[str(data), '--train', '4', '--val', '2'],
    )
    monkeypatch.setitem(study_tool.STUDIES, 'filter', study)
    return study


def test_a_study_trains_each_variant_once_and_prints_the_table(study, tmp_path, capsys):
    argv = ['filter', '--seeds', '0', '--jobs', '1', '--work-dir', str(tmp_path / 'studies')]
    study_tool.main(argv)
    printed = capsys.readouterr().out
    commands = re.findall(r'^\$ python tools/train.py .*$', printed, re.M)
    assert len(commands) == 2
    assert 'model.backbone.decay=False' not in commands[0] and 'model.backbone.decay=False' in commands[1]
    assert 'randomness.seed=0' in commands[0]
    for variant, folder in (('decay and rotation', 'decay_and_rotation'), ('neither', 'neither')):
        figures = json.loads((tmp_path / 'studies/filter' / folder / 'seed0/result.json').read_text())
        shown = f'{figures["mIoU"] / 100 if figures["mIoU"] > 1 else figures["mIoU"]:.3f}'
        assert f'| {variant} | {shown} ({shown}) |' in printed

    study_tool.main(argv)
    again = capsys.readouterr().out
    assert '$' not in again
    assert again.strip().splitlines()[-4:] == printed.strip().splitlines()[-4:]


def test_a_training_that_fails_stops_the_study(study, tmp_path, monkeypatch):
    monkeypatch.delitem(study.variants, 'decay and rotation')
    monkeypatch.setitem(study.variants, 'neither', ['model.backbone.decy=False'])
    with pytest.raises(SystemExit, match="'neither', seed 0: status .*log.txt; the same command goes on"):
        study_tool.main(['filter', '--seeds', '0', '--jobs', '2', '--work-dir', str(tmp_path / 'studies')])
