"""Pages about four models, made once for all processes of the tests."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.shared import made_once

from ..utils import run_tool
from .pages import PAGE, PAGES, STOCK, write


@pytest.fixture(scope='session')
def photos(tmp_path_factory) -> list[Path]:
    """Pictures of noise, which compress worst; the name of the first would be markup."""
    folder = tmp_path_factory.mktemp('photos')
    paths = [folder / '<b onclick="alert(1)">&.png', folder / 'b.png']
    for i, path in enumerate(paths):
        content = np.random.default_rng(i).integers(0, 256, (64, 96, 3)).astype(np.uint8)
        path.write_bytes(cv2.imencode('.png', content)[1].tobytes())
    return paths


@pytest.fixture(scope='session')
def mask_config(shipped_configs, mini_data, tmp_path_factory) -> Path:
    """The shipped Mask R-CNN, for one iteration, with the test set of the mini data."""
    path = tmp_path_factory.mktemp('configs') / 'mask-rcnn.py'
    path.write_text(
        f"_base_ = '{shipped_configs['det']}'\n"
        f"test_dataloader = dict(dataset=dict(data_root='{mini_data}/coco/'))\n"
        f"test_evaluator = dict(ann_file='{mini_data}/coco/annotations/instances_val2017.json')\n"
    )
    return path


@pytest.fixture(scope='session')
def detector(mask_config, tmp_path_factory) -> Path:
    """Mask R-CNN after one iteration."""

    def make(folder: Path) -> None:
        run_tool('train', mask_config, '--work-dir', folder)
        write(folder, mask_config, '--checkpoint', folder / 'iter_1.pth', '--score-thr', 0.01)

    return made_once(tmp_path_factory, 'page-of-detector', make) / PAGE


@pytest.fixture(scope='session')
def segmentor(seg, tmp_path_factory) -> Path:
    args = [seg.config, '--checkpoint', seg.checkpoint, '--num-images', 2, '--measure', 3, '--speed']
    return made_once(tmp_path_factory, 'page-of-segmentor', lambda folder: write(folder, *args)) / PAGE


@pytest.fixture(scope='session')
def stock(photos, tmp_path_factory) -> Path:
    """A stock model of mmdet whose data are not there."""
    options = ['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(256,192)']
    return made_once(tmp_path_factory, 'page-of-stock', lambda folder: write(folder, STOCK, *photos, *options)) / PAGE


@pytest.fixture(scope='session')
def flex(photos, tmp_path_factory) -> Path:
    """A backbone by itself."""
    args = ['FlexViT:tiny', *photos, '--size', '64x96']
    return made_once(tmp_path_factory, 'page-of-flex', lambda folder: write(folder, *args)) / PAGE


@pytest.fixture(params=PAGES)
def page(request) -> Path:
    return request.getfixturevalue(request.param)
