"""Pictures in grey, of four channels, of 16 bits, of 4000×4000 pixels: taken as they are meant, or told in a line."""

import shutil
from collections.abc import Callable
from pathlib import Path

from mmvisattn.inference import memory

import cv2
import numpy as np
import pytest
from mmengine.model import ImgDataPreprocessor
from mmseg.models import SegDataPreProcessor

from .utils import read_log, run_tool

ADE = 'ade/ADEChallengeData2016'
UNCHANGED = [f'{name}_dataloader.dataset.pipeline.0.color_type=unchanged' for name in ('train', 'val', 'test')]
NO_WORKERS = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1']


# The maintained fork of mmseg takes 1 or 3, as mmdet does.
TAKES_FOUR = not issubclass(SegDataPreProcessor, ImgDataPreprocessor)


def with_channels(number: int, mean: float, values: int = 1) -> list[str]:
    return [
        *(f'model.backbone.in_channels={number}', f'model.data_preprocessor.mean={[mean] * values}'.replace(' ', '')),
        f'model.data_preprocessor.std={[mean / 2] * values}'.replace(' ', ''),
    ]


def grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)


def rgba(picture: np.ndarray) -> np.ndarray:
    return np.dstack([picture, grey(picture)])


def deep(picture: np.ndarray) -> np.ndarray:
    return grey(picture).astype(np.uint16) * 257


@pytest.fixture
def data_of(mini_data, tmp_path) -> Callable[[Callable], Path]:
    """The scenes with other pictures, each a PNG whatever its name says."""

    def make(change: Callable[[np.ndarray], np.ndarray]) -> Path:
        root = Path(shutil.copytree(mini_data, tmp_path / 'mini'))
        for path in root.rglob('*.jpg'):
            path.write_bytes(cv2.imencode('.png', change(cv2.imread(str(path))))[1].tobytes())
        return root

    return make


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Run a tool that must refuse in one line, and return it."""

    def run(*args: object, code: int = 2) -> str:
        with pytest.raises(SystemExit) as ended:
            run_tool(*args)
        assert ended.value.code == code
        told = capsys.readouterr().err
        assert 'Traceback' not in told
        return told[told.index('error: ') :]

    return run


def options_for(root: Path, *others: str) -> list[str]:
    data = [f'{name}_dataloader.dataset.data_root={root / ADE}' for name in ('train', 'val', 'test')]
    return ['--cfg-options', *data, *NO_WORKERS, *others]


def train(config: Path, work_dir: Path, options: list[str]) -> str:
    """Train and validate, and return the log."""
    run_tool('train', config, '--work-dir', work_dir, *options)
    lines = read_log(work_dir)
    assert np.isfinite(lines[0]['loss']) and 'mIoU' in lines[-1]
    (log,) = work_dir.glob('*/*.log')
    return log.read_text()


@pytest.mark.parametrize('change', [grey, rgba, deep])
def test_read_as_colour(change, seg_config, data_of, tmp_path):
    log = train(seg_config, tmp_path / 'work', options_for(data_of(change)))
    assert ('more than 8 bits a channel, of which the upper 8 are read' in log) == (change is deep)


@pytest.mark.parametrize(
    ('change', 'channels', 'mean'), [(grey, 1, 120), (rgba, 4, 120), (deep, 1, 30000)], ids=['grey', 'rgba', 'deep']
)
def test_read_as_they_are(change, channels, mean, seg_config, data_of, tmp_path, refused):
    root = data_of(change)
    options = options_for(root, *UNCHANGED, *with_channels(channels, mean, channels if TAKES_FOUR else 1))
    log = train(seg_config, tmp_path / 'work', options)
    assert ('is read as uint16 with values up to' in log) == (change is deep)
    checkpoint = tmp_path / 'work/iter_1.pth'
    run_tool('test', seg_config, checkpoint, '--work-dir', tmp_path / 'test', *options)
    picture = next((root / ADE / 'images/validation').iterdir())
    predict = ['predict', picture, seg_config, checkpoint, '--out-dir', tmp_path / 'drawn', *options]
    if change is deep:
        assert 'its values are of type uint16' in refused(*predict, code=1)
    else:
        run_tool(*predict)
        assert cv2.imread(str(tmp_path / 'drawn' / picture.name)).shape == (96, 128, 3)


def test_channels_that_the_model_does_not_take(seg_config, det_config, data_of, tmp_path, refused):
    root = data_of(rgba)
    run = ['train', seg_config, '--work-dir', tmp_path / 'work']
    line = refused(*run, *options_for(root, *UNCHANGED))
    assert 'pictures of 4 channels, such as' in line and 'has 3 values; set `mean` and `std`' in line
    line = refused(
        *run, *options_for(root, *UNCHANGED, *with_channels(4, 120)[1:], 'model.data_preprocessor.bgr_to_rgb=False')
    )
    assert 'the backbone takes 3; set `model.backbone.in_channels`' in line
    for config in (det_config, *([] if TAKES_FOUR else [seg_config])):
        line = refused('train', config, '--work-dir', tmp_path / 'work', '--cfg-options', *with_channels(4, 120, 4))
        assert '`model.data_preprocessor.mean` has 4 values' in line and 'takes 1 or 3' in line


def test_a_detector_of_four_channels(det_config, data_of, tmp_path, refused):
    root = data_of(rgba)
    run = ['train', det_config, '--work-dir', tmp_path / 'work', '--cfg-options', 'train_cfg.max_epochs=1']
    run += [*UNCHANGED, 'model.backbone.in_channels=4']
    run += [f'{name}_dataloader.dataset.data_root={root}/coco/' for name in ('train', 'val')]
    # Changing the order of colours, mmdet drops what is behind the first three.
    assert 'of which 3 come out of `model.data_preprocessor`, and the backbone takes 4' in refused(*run)
    one = ['model.data_preprocessor.mean=[120]', 'model.data_preprocessor.std=[60]']
    run_tool(*run, *one, 'model.data_preprocessor.bgr_to_rgb=False')
    assert all(np.isfinite(line['loss']) for line in read_log(tmp_path / 'work') if 'loss' in line)


def test_pictures_that_are_too_large_for_the_memory(seg, mini_data, tmp_path, refused, monkeypatch):
    root = Path(shutil.copytree(mini_data, tmp_path / 'mini'))
    pictures = {name: sorted((root / ADE / 'images' / name).iterdir()) for name in ('training', 'validation')}
    large = cv2.imencode('.png', np.ones((4000, 4000), np.uint8))[1].tobytes()
    for path in [pictures['training'][0], pictures['validation'][0]]:
        path.write_bytes(large)
        (root / ADE / 'annotations' / path.parent.name / f'{path.stem}.png').write_bytes(large)
    for path in pictures['training'][1:]:
        path.unlink()  # every batch has the large one
    monkeypatch.setattr(memory, 'free_memory', lambda device: 2 * 2**30)
    small = f'val_dataloader.dataset.data_root={mini_data / ADE}'
    train(seg.config, tmp_path / 'work', options_for(root, small))  # of which parts are cropped
    told = 'labels of 4000×4000 pixels and 150 classes take 8.9 GiB of memory, and 2.0 are free'
    line = refused('test', seg.config, seg.checkpoint, '--work-dir', tmp_path / 'test', *options_for(root))
    assert told in line and '--slice 1024' in line
    run = ['predict', pictures['validation'][0], seg.config, seg.checkpoint, '--out-dir', tmp_path / 'drawn']
    # Here with the memory in which they are drawn.
    assert 'take 11.2 GiB of memory' in refused(*run, code=1)
