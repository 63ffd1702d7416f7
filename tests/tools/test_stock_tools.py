"""The toolboxes' own tools of analysis, started through the package, on runs of ours."""

import pickle
from pathlib import Path

import cv2
import mmdet
import mmseg

from .utils import run_python, run_tool


def stock(toolbox, name: str) -> Path:
    folder = Path(toolbox.__file__).parent
    script = folder / '.mim/tools/analysis_tools' / name
    return script if script.is_file() else folder.parent / 'tools/analysis_tools' / name  # installed from a clone


def run(toolbox, name: str, *args: object) -> str:
    done = run_python('-m', 'mmvisattn', stock(toolbox, name), *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scalars(work_dir: Path) -> Path:
    return max(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns)


def test_analyze_logs(det, seg, tmp_path):
    # Of seaborn, or of matplotlib, as the tool sets it.
    looks = ['--style', 'dark' if 'seaborn' in stock(mmdet, 'analyze_logs.py').read_text() else 'dark_background']
    drawn = [tmp_path / f'{name}.png' for name in ('loss', 'metric', 'seg')]
    run(mmdet, 'analyze_logs.py', 'plot_curve', scalars(det.work_dir), *looks, '--keys', 'loss_cls', '--out', drawn[0])
    last = [*looks, '--keys', 'bbox_mAP', '--eval-interval', 3]
    run(mmdet, 'analyze_logs.py', 'plot_curve', scalars(det.work_dir), *last, '--out', drawn[1])
    assert 'average iter time' in run(mmdet, 'analyze_logs.py', 'cal_train_time', scalars(det.work_dir))
    run(mmseg, 'analyze_logs.py', scalars(seg.work_dir), '--keys', 'mIoU', '--out', drawn[2])
    for path in drawn:
        assert cv2.imread(str(path)).std() > 5


def test_confusion_matrix_of_a_detector(det, tmp_path):
    results = tmp_path / 'results.pkl'
    run_tool('test', det.config, det.checkpoint, '--work-dir', tmp_path, '--out', results)
    # To write the numbers into a matrix of 81 × 81 takes as long as the rest.
    pictures = pickle.loads(results.read_bytes())
    for picture in pictures:
        picture['pred_instances']['labels'] %= 3
    results.write_bytes(pickle.dumps(pictures))
    classes = '--cfg-options', "test_dataloader.dataset.metainfo.classes=('person','bicycle','car')"
    run(mmdet, 'confusion_matrix.py', det.config, results, tmp_path / 'matrix', *classes)
    assert cv2.imread(str(tmp_path / 'matrix/confusion_matrix.png')).std() > 5


def test_browse_dataset(det, tmp_path):
    run(mmdet, 'browse_dataset.py', det.config, '--output-dir', tmp_path, '--not-show')
    assert len(list(tmp_path.rglob('*.jpg'))) == 8
