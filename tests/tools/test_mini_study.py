import dataclasses
import json
import re
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

from tests import processes
from tools import driver
from tools.analysis import mini_study as study_tool

ADE, COCO = 'ade/ADEChallengeData2016', 'coco/'
SIZES = ['model.backbone.arch.depth=2', 'model.backbone.arch.embed_dims=16', 'model.neck.in_channels=16']


@pytest.fixture(autouse=True)
def begin_with_all_imported(monkeypatch):
    """The commands of a study begin in processes that have imported the toolboxes."""
    monkeypatch.setattr(driver.subprocess, 'Popen', processes.Popen)


def shrink(stage, data, options):
    """A stage on other data, of two steps."""
    root = ADE if 'ade20k' in stage.config else COCO
    options = [
        *(*options, 'train_dataloader.batch_size=2', 'default_hooks.checkpoint.interval=1'),
        *(f'{name}_dataloader.dataset.data_root={data / root}/' for name in ('train', 'val', 'test')),
        *(f'{name}_dataloader.num_workers=0' for name in ('train', 'val', 'test')),
        *(f'{name}_dataloader.persistent_workers=False' for name in ('train', 'val', 'test')),
    ]
    if root == ADE:
        options += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    else:
        options += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
        options += [f'val_evaluator.ann_file={data}/coco/annotations/instances_val2017.json']
    return dataclasses.replace(stage, options=options)


def shrink_study(name, tmp_path, monkeypatch, options=()):
    """A study with few scenes and two steps."""
    data = tmp_path / 'mini'
    study = study_tool.STUDIES[name]
    study = dataclasses.replace(
        study,
        variants=dict(study.variants),
        stages=[shrink(stage, data, options) for stage in study.stages],
        data=[[str(data), '--train', '4', '--val', '2']],
    )
    monkeypatch.setitem(study_tool.STUDIES, name, study)
    return study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study of the filter with a tiny network."""
    study = shrink_study('filter', tmp_path, monkeypatch, SIZES)
    for name in ('decay', 'rotation'):
        del study.variants[name]
    return study


def test_a_study_trains_each_variant_once_and_tests_it_under_other_settings(study, tmp_path, monkeypatch, capsys):
    smaller = 'test_dataloader.dataset.pipeline.1.scale=(80,64)'
    study = dataclasses.replace(study, tests={'half the size': ('decay and rotation', [smaller])})
    monkeypatch.setitem(study_tool.STUDIES, 'filter', study)
    argv = [
        'filter',
        '--seeds',
        '0',
        '--jobs',
        '1',
        '--work-dir',
        str(tmp_path / 'studies'),
        '--results',
        str(tmp_path / 'results.json'),
    ]
    study_tool.main(argv)
    printed = capsys.readouterr().out
    commands = re.findall(r'^\$ python tools/train.py .*$', printed, re.M)
    assert len(commands) == 2
    assert 'model.backbone.decay=False' not in commands[0] and 'model.backbone.decay=False' in commands[1]
    assert 'randomness.seed=0' in commands[0]
    folder = tmp_path / 'studies/filter'
    (command,) = re.findall(r'^\$ python tools/test.py .*$', printed, re.M)
    assert str(folder / 'decay_and_rotation/seed0/iter_2.pth') in command and smaller in command
    for row in ('decay and rotation', 'neither', 'half the size'):
        figures = json.loads((folder / row.replace(' ', '_') / 'seed0/result.json').read_text())
        shown = f'{figures["mIoU"] / 100:.3f}'
        assert f'| {row} | {shown} ({shown}) |' in printed

    study_tool.main(argv)
    again = capsys.readouterr().out
    assert 'tools/train.py' not in again and 'tools/test.py' not in again
    assert again.strip().splitlines()[-5:] == printed.strip().splitlines()[-5:]

    # The figures alone are enough, where the work directory is gone.
    shutil.rmtree(folder)
    study_tool.main(argv)
    from_results = capsys.readouterr().out
    assert 'tools/train.py' not in from_results
    assert from_results.strip().splitlines()[-5:] == printed.strip().splitlines()[-5:]


def test_a_training_that_fails_stops_the_study(study, tmp_path, monkeypatch):
    monkeypatch.delitem(study.variants, 'decay and rotation')
    monkeypatch.setitem(study.variants, 'neither', study_tool.Variant(['model.backbone.decy=False']))
    with pytest.raises(SystemExit, match="'neither', seed 0: status .*log.txt; the same command goes on"):
        study_tool.main(
            [
                'filter',
                '--seeds',
                '0',
                '--jobs',
                '2',
                '--work-dir',
                str(tmp_path / 'studies'),
                '--results',
                str(tmp_path / 'results.json'),
            ]
        )


def test_a_study_of_two_stages_starts_from_the_weights_of_the_first(tmp_path, monkeypatch, capsys):
    study = shrink_study('neck_dense', tmp_path, monkeypatch)
    for name in ('FPN, three plain layers', 'FPN, twenty plain layers', '25 %, chosen'):
        del study.variants[name]
    study_tool.main(
        [
            'neck_dense',
            '--seeds',
            '3',
            '--jobs',
            '1',
            '--work-dir',
            str(tmp_path / 'studies'),
            '--results',
            str(tmp_path / 'results.json'),
        ]
    )
    printed = capsys.readouterr().out
    commands = re.findall(r'^\$ python tools/train.py .*$', printed, re.M)
    assert len(commands) == 3  # the segmentor once: it is the same for both variants
    folder = tmp_path / 'studies/neck_dense'
    start = f'load_from={folder}/stage_1/seed0/iter_2.pth'
    assert start in commands[1] and start in commands[2] and 'load_from' not in commands[0]
    assert 'fcvit-mini_fpn_flexattention' in commands[2] and 'fcvit-mini_fpn_flexattention' not in commands[1]
    log = (folder / '25_chance/seed3/log.txt').read_text()
    assert f'Loads checkpoint by local backend from path: {folder}/stage_1/seed0/iter_2.pth' in log
    rows = [line.split(' | ') for line in printed.splitlines() if line.startswith(('| FPN', '| 25'))]
    flops = [int(row[-1].removesuffix(' |')) for row in rows]
    assert rows[0][-2] == '–' and rows[1][-2] != '–'  # FPN has no cells
    assert len(flops) == len(study.variants) and 0 < flops[0] < flops[1]
    # What was stopped half-way goes on from its own checkpoint, not from the first stage's again.
    (folder / 'FPN/seed3/result.json').unlink()
    again = study_tool.plan(study, 3, folder)['FPN'][-1].command()
    assert '--resume' in again and not any('load_from' in word for word in again)


def test_a_variant_may_begin_with_a_training_of_its_own(tmp_path):
    common = study_tool.Stage('a.py', ['x=1'], common=True)
    last = study_tool.Stage('b.py', ['y=1'], {'mIoU': 'mIoU'})
    variants = {'one': study_tool.Variant(), 'other': study_tool.Variant(['z=1'], first=['y=2'])}
    plan = study_tool.plan(study_tool.Study(variants, [common, last]), 3, tmp_path)
    start, before, end = plan['other']
    assert plan['one'][0] is start and before.start is start and end.start is before
    assert before.config == end.config == 'b.py' and not before.metrics and end.metrics
    assert before.options == ['y=1', 'z=1', 'y=2', 'randomness.seed=3']
    assert end.options == ['y=1', 'z=1', 'randomness.seed=3']
    assert len({training.folder for training in (*plan['one'], *plan['other'])}) == 4


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Trainings that are done at once: a common one, one from it that is there for its weights, and two to compare."""
    ran = []

    def run(training, *args, **env):
        ran.append((training.name, training.start and training.start.checkpoint))
        training.folder.mkdir(parents=True, exist_ok=True)
        torch.save({}, training.folder / 'iter_1.pth')
        training.result_file.write_text(json.dumps({'minutes': 1, **dict.fromkeys(training.metrics, 50.0)}))

    monkeypatch.setattr(study_tool.Training, 'run', run)
    variants = {'one': study_tool.Variant(), 'other': study_tool.Variant(first=['y=2'])}
    stages = [study_tool.Stage('a.py', [], common=True), study_tool.Stage('b.py', [], {'mIoU': 'mIoU'})]
    study = study_tool.Study(variants, stages)
    return ran, study, study_tool.plan(study, 0, tmp_path / 'studies')


def names(ran):
    return [name.split(',')[0].strip("'") + (' before' if 'before' in name else '') for name, _ in ran]


def test_each_training_begins_when_the_weights_are_there(chain, tmp_path):
    ran, _, plan = chain
    study_tool.run_all([*plan['one'], *plan['other']], 2, tmp_path / 'results.json')
    assert sorted(names(ran)) == ['one', 'other', 'other before', 'stage 1']
    assert [start is None for _, start in ran] == [True, False, False, False]
    assert json.loads((tmp_path / 'results.json').read_text()).keys() == {"'one', seed 0", "'other', seed 0"}


def test_where_figures_are_known_nothing_is_trained_for_its_weights(chain, tmp_path, capsys):
    ran, study, plan = chain
    trainings = [*plan['one'], *plan['other']]
    study_tool.run_all(trainings, 2, tmp_path / 'results.json')
    ran.clear()
    shutil.rmtree(tmp_path / 'studies')
    study_tool.run_all(trainings, 2, tmp_path / 'results.json')
    study_tool.print_table(study, [plan])
    assert not ran
    assert '| other | 0.500 (0.500) |' in capsys.readouterr().out

    # What is asked for in addition brings back the weights that it starts from, and no others.
    known = json.loads((tmp_path / 'results.json').read_text())
    del known["'one', seed 0"]
    (tmp_path / 'results.json').write_text(json.dumps(known))
    (trainings[1].result_file).unlink()
    study_tool.run_all(trainings, 2, tmp_path / 'results.json')
    assert names(ran) == ['stage 1', 'one'] and ran[1][1] is not None


def test_a_test_brings_back_weights_of_which_only_the_figures_are_known(chain, tmp_path):
    ran, _, plan = chain
    start = plan['one'][-1]
    study_tool.run_all(plan['one'], 1, tmp_path / 'results.json')
    ran.clear()
    shutil.rmtree(tmp_path / 'studies')
    test = study_tool.Test(
        name="'test', seed 0",
        config='b.py',
        options=[],
        folder=tmp_path / 'test',
        metrics={'mIoU': 'mIoU'},
        start=start,
    )
    study_tool.run_all([*plan['one'], test], 2, tmp_path / 'results.json')
    assert names(ran) == ['stage 1', 'one', 'test'] and ran[2][1] == str(start.folder / 'iter_1.pth')


def test_a_training_that_waits_for_another_takes_no_jobs_place(chain, tmp_path, monkeypatch):
    ran, _, plan = chain
    run = study_tool.Training.run
    free = study_tool.Training(
        name="'free', seed 0", config='c.py', options=[], folder=tmp_path / 'free', metrics={'mIoU': 'mIoU'}
    )
    begun = threading.Event()

    def wait_for_the_free(training, *args, **env):
        if training is free:
            begun.set()
        assert begun.wait(60), 'both jobs are taken'
        run(training)

    monkeypatch.setattr(study_tool.Training, 'run', wait_for_the_free)
    study_tool.run_all([*plan['one'], *plan['other'], free], 2)
    assert len(ran) == 5


def test_the_table_scales_metrics_by_their_names(tmp_path, capsys):
    """A segmentor of 0.8 % is no better for it, and a detector of an AP of 0.8 no worse."""
    stages = [
        study_tool.Stage('segmentor.py', [], {'mIoU': 'mIoU'}),
        study_tool.Stage('detector.py', [], {'coco/bbox_mAP': 'AP'}),
    ]
    study = study_tool.Study({'one': study_tool.Variant()}, stages)
    plan = study_tool.plan(study, 0, tmp_path)
    for training, figures in zip(plan['one'], ({'mIoU': 0.8}, {'coco/bbox_mAP': 0.8})):
        training.folder.mkdir(parents=True)
        training.result_file.write_text(json.dumps(figures))
    study_tool.print_table(study, [plan])
    assert '| one | 0.008 (0.008) | 0.800 (0.800) |' in capsys.readouterr().out


def test_places_on_the_scale_by_hand(tmp_path, capsys):
    stages = [study_tool.Stage('detector.py', [], {'coco/bbox_mAP_50': 'AP50'})]
    figures = {'low': (0.1, 0.2, 0.3), 'chance': (0.1, 0.2, 0.5), 'half': (0.2, 0.4, 0.5), 'all': (0.5, 0.6)}
    study = study_tool.Study(
        {name: study_tool.Variant(seeds=len(values)) for name, values in figures.items()},
        stages,
        scale=study_tool.Scale('low', 'all', 'chance'),
    )
    plans = [study_tool.plan(study, seed, tmp_path) for seed in range(4)]
    assert [len(plan) for plan in plans] == [4, 4, 3, 0]
    for seed, plan in enumerate(plans):
        for name, (training,) in plan.items():
            training.folder.mkdir(parents=True)
            training.result_file.write_text(json.dumps({'coco/bbox_mAP_50': figures[name][seed]}))

    def place(variant, base, plans=plans):
        return study_tool.place(study.scale, variant, base, plans)

    # 0.25, 0.5 and 0.5 of the gap of 0.4 that the two seeds with all have; t is 4.303 with two degrees of freedom
    assert place('half', 'low') == '0.42 (0.06–0.78)'
    assert place('half', 'chance') == '0.25 (-0.37–0.87)'  # 0.25, 0.5 and 0
    assert place('half', 'low', plans[:1]) == '0.25'
    assert place('low', 'low') == place('half', 'low', plans[2:]) == '–'
    study_tool.print_table(study, plans)
    printed = capsys.readouterr().out
    assert '| half | 0.367 (0.200, 0.400, 0.500) | 0.42 (0.06–0.78) | 0.25 (-0.37–0.87) |' in printed
    assert '| all | 0.550 (0.500, 0.600) | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) |' in printed


def test_differences_are_paired_by_seed(capsys):
    def with_metric(value):
        return [SimpleNamespace(shares=iter([('AP50', value)]))]

    study = study_tool.Study(variants={}, stages=[], differences=[('a', 'b')])
    study_tool.print_differences(study, [dict(a=with_metric(x), b=with_metric(y)) for x, y in ((0.3, 0.1), (0.9, 0.6))])
    # Student's t of one degree of freedom is 12.706, and the standard error of 0.2 and 0.3 is 0.05.
    assert capsys.readouterr().out == "'a' − 'b': 0.250 (-0.385 to 0.885)\n"
