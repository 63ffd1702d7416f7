"""What a segmentor takes each class for."""

import cv2
import numpy as np
import pytest

from tools.analysis import confusion_matrix

from .utils import read_metrics, run_tool


def test_the_matrix_is_that_of_the_metrics(seg, tmp_path, monkeypatch, capsys):
    run_tool('test', seg.config, seg.checkpoint, '--work-dir', tmp_path / 'work', '--out', tmp_path / 'labels')
    capsys.readouterr()
    matrices, count = [], confusion_matrix.confusion_matrix
    monkeypatch.setattr(
        confusion_matrix, 'confusion_matrix', lambda *args: matrices.append(count(*args)) or matrices[0]
    )
    plot = tmp_path / 'matrix.png'
    confusion_matrix.main([str(seg.config), str(tmp_path / 'labels'), '--plot', str(plot), '--top', '3'])
    (counts,) = matrices
    metrics = read_metrics(tmp_path / 'work')
    assert 100 * np.trace(counts) / counts.sum() == pytest.approx(metrics['aAcc'], abs=0.01)
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    with np.errstate(invalid='ignore'):
        assert 100 * np.nanmean(np.diag(counts) / union) == pytest.approx(metrics['mIoU'], abs=0.01)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    wrong = counts - np.diag(np.diag(counts))
    assert len(rows) == 2 + 3 and rows[2].endswith(f'| {wrong.max()} |')
    assert cv2.imread(str(plot)).std() > 5


def test_what_does_not_fit_is_told(seg, det, tmp_path, capsys):
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit):
            confusion_matrix.main([str(word) for word in words])
        return capsys.readouterr().err.splitlines()[-1]

    assert 'is of a detector' in refused(det.config, tmp_path)
    assert 'is no folder' in refused(seg.config, tmp_path / 'none')
    assert "png' is missing; write it with tools/test.py --out" in refused(seg.config, tmp_path)
    for image in seg.images.iterdir():
        cv2.imwrite(str(tmp_path / f'{image.stem}.png'), np.full((96, 128), 151, np.uint8))
    assert 'has 96×128 labels from 150 to 150, the truth 96×128 of 150 classes' in refused(seg.config, tmp_path)
