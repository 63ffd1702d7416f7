"""Trainings side by side, from what mmengine leaves in their work directories."""

import json
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config

from tools.analysis import compare
from tools.analysis.training_log import TrainingLog

from .utils import run_tool

MODEL = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32)),
    backbone=dict(type='ResNetV1c', depth=18, num_stages=4, out_indices=(0, 1, 2, 3)),
    decode_head=dict(type='FCNHead', in_channels=512, in_index=3, channels=8, num_convs=1, num_classes=3),
)


def lines_of(values: dict[int, float], metric: str, first: int = 1) -> list[dict]:
    """What a training by iteration logs at each iteration, with a metric at some."""
    lines = []
    for step in range(first, max(values) + 1):
        train = dict(lr=0.1, loss=1 / step, time=0.5 if step > 1 else 9.0, data_time=0.1, iter=step, step=step)
        lines += [train] + ([{metric: values[step], 'time': 0.1, 'step': step}] if step in values else [])
    return lines


def write(
    folder: Path, values: dict[int, float], *, seed=None, metric='mIoU', start='20260101_000000', first=1, **changes
):
    """A work directory of a training; ``changes`` are those of its config."""
    logs = folder / start / 'vis_data'
    logs.mkdir(parents=True)
    text = '\n'.join(json.dumps(line) for line in lines_of(values, metric, first))
    (logs / 'scalars.json').write_text(text + '\n{"cut')  # killed while it wrote
    settings = dict(
        default_scope='mmseg',
        model=MODEL,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=4),
        randomness=dict(seed=seed),
        work_dir=str(folder),
    )
    Config(settings | changes).dump(logs / 'config.py')
    return folder


def cells(out: str) -> list[dict[str, str]]:
    """The rows of the table by the names of its columns."""
    header, _, *rows = [
        [cell.strip() for cell in line.strip('| ').split(' | ')] for line in out.splitlines() if '|' in line
    ]
    return [dict(zip(header, row)) for row in rows]


def test_seeds_of_a_config_are_a_row_with_its_interval(tmp_path, capsys):
    for seed, value in enumerate((50.0, 52.0, 57.0)):
        write(tmp_path / f'wide/seed{seed}', {2: 40.0 + seed, 4: value}, seed=seed)
    write(tmp_path / 'narrow', {2: 30.0, 4: 44.0}, seed=0, train_cfg=dict(by_epoch=False, max_iters=8))
    plot, figures = tmp_path / 'curves.png', tmp_path / 'table.json'
    folders = [str(tmp_path / 'narrow'), *(str(tmp_path / f'wide/seed{seed}') for seed in (1, 0, 2))]
    compare.main([*folders, '--plot', str(plot), '--json', str(figures)])
    narrow, wide = cells(capsys.readouterr().out)
    assert (narrow['training'], narrow['seeds'], narrow['at']) == ('narrow', '0', 'iteration 4 of 8')
    assert narrow['mIoU'] == '44' and narrow['s an iteration'] == '0.5' and narrow['GPU MB'] == '–'
    # a deviation of 3.606, and t is 4.303 with two degrees of freedom
    assert (wide['training'], wide['seeds'], wide['mIoU']) == ('wide/seed', '0, 1, 2', '53 ± 9')
    assert narrow['GFLOPs, 32×32'] == wide['GFLOPs, 32×32'] and float(wide['GFLOPs, 32×32']) > 0.01
    assert float(wide['M parameters']) > 11
    written = json.loads(figures.read_text())[1]
    assert written['metrics']['mIoU'] == {'mean': 53.0, 'half': pytest.approx(8.957, abs=1e-3)}
    assert written['seeds'] == [1, 0, 2] and written['at'] == {'iteration': 4, 'of': 4}
    picture = cv2.imread(str(plot))
    assert picture.std() > 5
    # The band of the second colour, orange over white.
    assert ((abs(picture.astype(int) - (207, 229, 255))).max(2) < 12).sum() > 500


def test_names_put_trainings_together(tmp_path, capsys):
    for i, value in enumerate((1.0, 3.0, 5.0)):
        write(tmp_path / f'run{i}', {4: value}, seed=i, optim_wrapper=dict(lr=0.1 * i))
    one, two, three = (str(tmp_path / f'run{i}') for i in range(3))
    compare.main([f'both={one}', three, f'both={two}'])
    both, alone = cells(capsys.readouterr().out)
    assert both['training'] == 'both' and both['mIoU'].startswith('2 ± ')
    assert alone['training'] == 'run2' and alone['mIoU'] == '5'
    compare.main([one, two, three])  # of three configs
    assert [row['training'] for row in cells(capsys.readouterr().out)] == ['run0', 'run1', 'run2']


def test_a_resumed_training_is_one(tmp_path):
    folder = write(tmp_path / 'run', {2: 1.0, 4: 2.0})
    write(folder, {4: 3.0, 6: 4.0}, start='20260101_000001', first=3)
    log = TrainingLog.read(folder)
    assert list(log.steps) == [1, 2, 3, 4, 5, 6] and log.curve('mIoU') == {2: 1.0, 4: 3.0, 6: 4.0}
    write(folder, {2: 9.0}, start='20260101_000002')  # anew
    assert TrainingLog.read(folder).curve('mIoU') == {2: 9.0}


def test_epochs_beside_iterations_are_drawn_by_share(tmp_path, capsys):
    by_epoch = dict(type='EpochBasedTrainLoop', max_epochs=2)
    runs = [write(tmp_path / 'a', {2: 1.0, 4: 2.0}), write(tmp_path / 'b', {1: 1.0, 2: 2.0}, train_cfg=by_epoch)]
    compare.main([*map(str, runs), '--plot', str(tmp_path / 'plot.svg')])
    assert [row['at'] for row in cells(capsys.readouterr().out)] == ['iteration 4 of 4', 'epoch 2 of 2']
    assert 'share of the training' in (tmp_path / 'plot.svg').read_text()
    told = refused([f'x={runs[0]}', f'x={runs[1]}'], capsys)
    assert "the trainings of 'x' are counted partly by epoch" in told


def test_a_model_that_cannot_be_built_has_no_flops(tmp_path, capsys):
    write(tmp_path / 'own', {4: 1.0}, model=dict(MODEL, backbone=dict(type='NotHere')))
    compare.main([str(tmp_path / 'own')])
    shown = capsys.readouterr()
    assert cells(shown.out)[0]['M parameters'] == '–' and 'own: FLOPs are not counted: ' in shown.err


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as exit_info:
        compare.main(words)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_compared_is_told(tmp_path, capsys):
    good = str(write(tmp_path / 'good', {4: 1.0}))
    boxes = str(write(tmp_path / 'boxes', {4: 0.1}, metric='coco/bbox_mAP'))
    (tmp_path / 'empty').mkdir()
    short = write(tmp_path / 'short', {4: 1.0})
    scalars = next(short.glob('*/vis_data/scalars.json'))
    scalars.write_text(scalars.read_text().splitlines()[0])
    assert "'none' is no folder" in refused([good, 'none'], capsys)
    assert "empty' has no log of a training" in refused([good, str(tmp_path / 'empty')], capsys)
    assert "short' has no validation in its log yet" in refused([str(short)], capsys)
    assert 'is given twice' in refused([good, good], capsys)
    told = refused([good, boxes], capsys)
    assert 'no metric in common: ' in told and "good' has mIoU, and " in told and "boxes' has coco/bbox_mAP" in told
    assert (
        '--metrics mIoUs: ' in (told := refused([good, '--metrics', 'mIoUs'], capsys))
        and "did you mean 'mIoU'?" in told
    )
    assert 'is neither .png nor .svg' in refused([good, '--plot', str(tmp_path / 'a.gif')], capsys)
    next(Path(boxes).glob('*/vis_data/config.py')).unlink()
    assert "config.py' is missing" in refused([boxes], capsys)


def test_trainings_of_both_toolboxes(det, seg, tmp_path, capsys):
    for trained, metric, at, seeds in (
        (det, 'coco/bbox_mAP', 'epoch 3 of 3', '0'),
        (seg, 'mIoU', 'iteration 6 of 6', '1 unknown'),
    ):
        run_tool('analysis/compare', trained.work_dir, '--size', '64x64', '--plot', tmp_path / 'plot.png')
        (row,) = cells(capsys.readouterr().out)
        assert row['at'] == at and float(row[metric]) >= 0 and float(row['s an iteration']) > 0
        assert float(row['GFLOPs, 64×64']) > 0 and row['seeds'] == seeds
