import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from .utils import load_tool, run_tool

# What lets a network of stride 32 take any picture.
PADDED = {'tiny-retinanet': 'pad_size_divisor=32', 'tiny-semantic-fpn': 'test_cfg=dict(size_divisor=32)'}


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


@pytest.mark.parametrize(('threshold', 'bare'), [(0.0, False), (1.0, True)])
def test_predict_score_threshold(threshold, bare, det, tmp_path):
    cv2.imwrite(str(tmp_path / 'grey.png'), np.full((96, 128, 3), 128, np.uint8))
    folder = tmp_path / 'drawn'
    options = ['--out-dir', folder, '--score-thr', threshold, '--cfg-options', 'model.test_cfg.max_per_img=5']
    run_tool('predict', tmp_path / 'grey.png', det.config, det.checkpoint, *options)
    assert (cv2.imread(str(folder / 'grey.png')).std() == 0) == bare


def test_predict_takes_files_and_cfg_options(seg, tmp_path):
    images = sorted(seg.images.iterdir())[:2]
    run_tool(
        *('predict', *images, seg.config, seg.checkpoint, '--out-dir', tmp_path / 'new', '--device', 'cpu'),
        *('--cfg-options', 'model.test_cfg.mode=whole'),
    )
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == [image.name for image in images]


@pytest.mark.parametrize('names', ['the checkpoint', 'the config'])
def test_predict_knows_every_class(seg, tmp_path, names):
    checkpoint = seg.checkpoint
    if names == 'the config':
        checkpoint = tmp_path / 'bare.pth'
        torch.save(torch.load(seg.checkpoint, weights_only=False)['state_dict'], checkpoint)
    tool = load_tool('predict')
    cfg = tool.cli.load_config(str(seg.config))
    tool.init_default_scope(cfg.default_scope)
    meta = tool.build_model(cfg, str(checkpoint), 'cpu').dataset_meta
    assert len(meta['classes']) == len(meta['palette']) == 150
    assert meta['classes'][:2] == ('wall', 'building')


def test_predict_refuses_fewer_names_than_classes(seg, tmp_path, capsys):
    bare = tmp_path / 'bare.pth'
    torch.save(torch.load(seg.checkpoint, weights_only=False)['state_dict'], bare)
    image = next(seg.images.iterdir())
    config = tmp_path / 'few.py'
    config.write_text(f"_base_ = '{seg.config}'\ntest_dataloader = dict(dataset=dict(type='CityscapesDataset'))\n")
    with pytest.raises(SystemExit) as ended:
        run_tool('predict', image, config, bare, '--out-dir', tmp_path / 'out')
    assert ended.value.code == 2
    assert 'tells 150 classes apart' in capsys.readouterr().err


def test_predict_goes_on_after_a_broken_picture(trained, tmp_path, capsys):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    whole = cv2.imread(str(next(trained.images.iterdir())))
    good = {
        'grey.png': cv2.cvtColor(whole, cv2.COLOR_BGR2GRAY),
        'rgba.png': cv2.cvtColor(whole, cv2.COLOR_BGR2BGRA),
        'sixteen.png': whole.astype(np.uint16) * 257,
        'whole.png': whole,
    }
    for name, picture in good.items():
        cv2.imwrite(str(folder / name), picture)
    Image.fromarray(whole[..., ::-1]).quantize(16).save(folder / 'palette.png')
    cv2.imwrite(str(folder / 'float.tiff'), whole.astype(np.float32) / 255)
    cv2.imwrite(str(folder / 'jpeg.jpg'), whole)
    jpeg = (folder / 'jpeg.jpg').read_bytes()
    (folder / 'jpeg.jpg').write_bytes(jpeg[: len(jpeg) // 2])
    (folder / 'empty.png').touch()
    (folder / 'text.jpg').write_text('no picture')
    readable, damaged = {'palette.png', *good}, {'jpeg.jpg', 'empty.png', 'text.jpg'}
    float_is_read = cv2.imread(str(folder / 'float.tiff')) is not None  # by OpenCV 4, not by OpenCV 5
    (readable if float_is_read else damaged).add('float.tiff')
    few = ['--cfg-options', 'model.test_cfg.max_per_img=5']
    with pytest.raises(SystemExit) as ended:
        run_tool('predict', folder, trained.config, trained.checkpoint, '--out-dir', tmp_path / 'drawn', *few)
    assert ended.value.code == 1
    assert {path.name for path in (tmp_path / 'drawn').iterdir()} == readable
    told = capsys.readouterr().err
    for name in damaged:
        assert f'{name} is not drawn: it cannot be read' in told
    assert 'Traceback' not in told
    assert f'{len(damaged)} of 9 pictures could not be drawn' in told


def test_predict_draws_a_single_pixel(trained, tmp_path):
    cv2.imwrite(str(tmp_path / 'pixel.png'), np.zeros((1, 1, 3), np.uint8))
    config = tmp_path / 'padded.py'
    config.write_text(
        f"_base_ = '{trained.config}'\nmodel = dict(data_preprocessor=dict({PADDED[trained.config.stem]}))\n"
    )
    run_tool('predict', tmp_path / 'pixel.png', config, trained.checkpoint, '--out-dir', tmp_path / 'drawn')
    assert cv2.imread(str(tmp_path / 'drawn/pixel.png')).shape == (1, 1, 3)


def test_predict_names_a_picture_too_small_for_the_network(seg, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'pixel.png'), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(SystemExit) as ended:
        run_tool('predict', tmp_path / 'pixel.png', seg.config, seg.checkpoint, '--out-dir', tmp_path / 'drawn')
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert 'pixel.png is not drawn: FCViT was given an image of 1×1 pixels' in told and 'Traceback' not in told


def test_predict_keeps_the_traceback_of_what_is_no_fault_of_the_picture(seg, tmp_path, capsys):
    image = next(seg.images.iterdir())
    options = ['--out-dir', tmp_path / 'drawn', '--cfg-options', 'model.test_cfg.mode=hole']
    with pytest.raises(SystemExit) as ended:
        run_tool('predict', image, seg.config, seg.checkpoint, *options)
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert 'Traceback' in told and f'{image} is not drawn: AssertionError, see above' in told


def test_predict_draws_large_pictures_of_tiles_smaller(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(load_tool('predict'), 'DRAWN_SIDE', 128)
    frame = cv2.imread(str(next(trained.images.iterdir())))
    cv2.imwrite(str(tmp_path / 'large.png'), np.tile(frame, (2, 2, 1)))
    out = tmp_path / ('found.json' if trained.config.stem == 'tiny-retinanet' else 'labels')
    run_tool(
        *('predict', tmp_path / 'large.png', trained.config, trained.checkpoint, '--out-dir', tmp_path / 'drawn'),
        *('--out', out, '--slice', 128, '--score-thr', 0.05),
    )
    assert 'large.png: drawn at 50% of its size' in capsys.readouterr().err
    assert cv2.imread(str(tmp_path / 'drawn/large.png')).shape == frame.shape
    if out.suffix:
        image = json.loads(out.read_text())['images'][0]
        assert (image['width'], image['height']) == (2 * frame.shape[1], 2 * frame.shape[0])
    else:
        assert Image.open(out / 'large.png').size == (2 * frame.shape[1], 2 * frame.shape[0])


def test_predict_patterns_videos_and_tiles(trained, tmp_path, capsys):
    frame = cv2.imread(str(next(trained.images.iterdir())))
    height, width = frame.shape[:2]
    video = cv2.VideoWriter(str(tmp_path / 'drive.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (width, height))
    for _ in range(2):
        video.write(frame)
    video.release()
    (tmp_path / 'deep/er').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'deep/er/large.png'), np.tile(frame, (2, 2, 1)))
    detector = trained.config.stem == 'tiny-retinanet'
    out = tmp_path / ('found.json' if detector else 'labels')
    options = ['--cfg-options', 'model.test_cfg.max_per_img=5'] if detector else []
    run_tool(
        *('predict', tmp_path / 'drive.avi', f'{tmp_path}/deep/**/*.png', trained.config, trained.checkpoint),
        *('--out-dir', tmp_path / 'drawn', '--out', out, '--slice', 128, '--score-thr', 0.01, *options),
    )
    drawn = cv2.VideoCapture(str(tmp_path / 'drawn/drive.mp4'))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (2, 5)
    assert cv2.imread(str(tmp_path / 'drawn/large.png')).shape == (2 * height, 2 * width, 3)
    if detector:
        images = json.loads(out.read_text())['images']
        assert [Path(image['file_name']).name for image in images] == [
            'drive-000000.png',
            'drive-000001.png',
            'large.png',
        ]
    else:
        assert sorted(path.name for path in out.iterdir()) == ['drive-000000.png', 'drive-000001.png', 'large.png']
        assert np.asarray(Image.open(out / 'large.png')).shape == (2 * height, 2 * width)


def test_predict_refuses_what_cannot_be(det, seg, tmp_path, capsys):
    image = next(det.images.iterdir())
    for args, words in (
        ([f'{tmp_path}/*.jpg'], 'no file fits the pattern'),
        ([image, '--slice', 8], '--slice 8'),
        ([image, '--overlap', 1], '--overlap 1.0'),
        ([image, '--out', 'results'], 'name it .json'),
        ([image, '--data', tmp_path], 'give one of them'),
        ([], 'no pictures'),
    ):
        with pytest.raises(SystemExit) as ended:
            run_tool('predict', *args[:1], det.config, det.checkpoint, *args[1:], '--out-dir', tmp_path / 'drawn')
        assert ended.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_tool('predict', image, seg.config, seg.checkpoint, '--out', 'labels.json')
    assert 'name a folder' in capsys.readouterr().err


def test_predict_tells_of_a_nearly_black_picture(det, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'deep.png'), np.full((96, 128), 4095, np.uint16))
    run_tool('predict', tmp_path / 'deep.png', det.config, det.checkpoint, '--out-dir', tmp_path / 'drawn')
    assert 'of its more than 8 bits a channel the upper 8 are read' in capsys.readouterr().err
