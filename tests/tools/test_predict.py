import cv2
import numpy as np
import pytest

from .conftest import run_tool


@pytest.fixture(params=['det', 'seg'])
def trained(request):
    return request.getfixturevalue(request.param)


def test_predict_draws_a_folder_and_prints_the_paths(trained, tmp_path, capsys):
    few = ['--cfg-options', 'model.test_cfg.max_per_img=20']  # boxes, which take long to draw
    run_tool(
        *('predict', trained.images, trained.config, trained.checkpoint, '--out-dir', tmp_path),
        *('--score-thr', 0.0, *few),
    )
    images = sorted(trained.images.iterdir())
    printed = capsys.readouterr().out.splitlines()[-len(images) :]
    assert printed == [str(tmp_path / image.name) for image in images]
    for image in images:
        given, drawn = cv2.imread(str(image)), cv2.imread(str(tmp_path / image.name))
        assert drawn.shape == given.shape
        assert np.abs(given.astype(int) - drawn).mean() > 5


def test_predict_score_threshold(det, tmp_path):
    image = sorted(det.images.iterdir())[0]
    run_tool('predict', image, det.config, det.checkpoint, '--out-dir', tmp_path, '--score-thr', 1.0)
    given, drawn = cv2.imread(str(image)), cv2.imread(str(tmp_path / image.name))
    assert np.abs(given.astype(int) - drawn).mean() < 5  # only what JPEG loses


def test_predict_takes_files_and_cfg_options(seg, tmp_path):
    images = sorted(seg.images.iterdir())[:2]
    run_tool(
        *('predict', *images, seg.config, seg.checkpoint, '--out-dir', tmp_path / 'new', '--device', 'cpu'),
        *('--cfg-options', 'model.test_cfg.mode=whole'),
    )
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == [image.name for image in images]
