"""``--data FOLDER`` from a training to pictures: a folder of YOLO and one of labels of pixels, with the real tools."""

import json
import shutil
from pathlib import Path

from mmvisattn.datasets.files import read_head

import mmdet
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from .test_train_test import stock_train
from .utils import load_tool, read_log, read_metrics, run_python, run_tool

SHORT = {
    'det': ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
    'seg': ['train_cfg.max_iters=2', 'train_cfg.val_interval=2'],
}
CHECKPOINT = {'det': 'epoch_1.pth', 'seg': 'iter_2.pth'}


@pytest.fixture(scope='module')
def folders(mini_data, tmp_path_factory) -> dict[str, Path]:
    """The scenes in YOLO's format with three classes, and as images and labels of their own numbers."""
    yolo = tmp_path_factory.mktemp('own') / 'yolo'
    for split in ('train', 'val'):
        content = json.loads((mini_data / f'coco/annotations/instances_{split}2017.json').read_text())
        used = sorted({one['category_id'] for one in content['annotations']})
        for part in ('images', 'labels'):
            (yolo / part / split).mkdir(parents=True)
        for image in content['images']:
            shutil.copy(mini_data / f'coco/{split}2017' / image['file_name'], yolo / 'images' / split)
            lines = []
            for one in content['annotations']:
                if one['image_id'] == image['id'] and not one['iscrowd']:
                    x, y, w, h = one['bbox']
                    width, height = image['width'], image['height']
                    share = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
                    lines.append(f'{used.index(one["category_id"]) % 3} ' + ' '.join(f'{value:.6f}' for value in share))
            (yolo / f'labels/{split}/{Path(image["file_name"]).stem}.txt').write_text('\n'.join(lines))
    (yolo / 'data.yaml').write_text('train: images/train\nval: images/val\nnames: [Auto, Boot, Flugzeug]\n')
    seg = yolo.parent / 'labels'
    ade = mini_data / 'ade/ADEChallengeData2016'
    for part in ('images', 'annotations'):
        shutil.copytree(ade / part / 'training', seg / part)
    return {'det': yolo, 'seg': seg}


@pytest.fixture(scope='module')
def trained(folders, det_config, seg_config, tmp_path_factory) -> dict[str, Path]:
    """The work directories of a short training of each."""
    work_dirs = {}
    for kind, config in (('det', det_config), ('seg', seg_config)):
        work_dirs[kind] = tmp_path_factory.mktemp('work') / kind
        args = ['--work-dir', work_dirs[kind], '--cfg-options', *SHORT[kind]]
        run_tool('train', config, '--data', folders[kind], *args)
    return work_dirs


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_train_and_the_stock_tool_on_the_resolved_config(kind, trained, folders, request, tmp_path):
    config = request.getfixturevalue(f'{kind}_config')
    losses = [entry['loss'] for entry in read_log(trained[kind]) if 'loss' in entry]
    assert losses and np.isfinite(losses).all()
    resolved = trained[kind] / config.name
    cfg = Config.fromfile(resolved)
    assert 'mmvisattn' in cfg.custom_imports.imports  # which a tool that does not know the package goes by
    dataset = cfg.train_dataloader.dataset
    if kind == 'det':
        assert dataset.metainfo.classes == ('Auto', 'Boot', 'Flugzeug')
    stock = ('-m', 'mmvisattn', stock_train(mmdet)) if kind == 'det' else (stock_train(mmseg),)
    one_step = ['train_cfg.max_iters=1'] if kind == 'seg' else ['train_dataloader.dataset.indices=2']
    never = 'val_cfg=None val_dataloader=None val_evaluator=None'.split()
    done = run_python(*stock, resolved, '--work-dir', tmp_path, '--cfg-options', *one_step, *never)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(read_log(tmp_path)[0]['loss'])


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_test_measures_what_training_did(kind, trained, folders, request, tmp_path):
    config = request.getfixturevalue(f'{kind}_config')
    checkpoint = trained[kind] / CHECKPOINT[kind]
    run_tool('test', config, checkpoint, '--data', folders[kind], '--work-dir', tmp_path)
    validation = read_log(trained[kind])[-1]
    measured = {key: value for key, value in read_metrics(tmp_path).items() if 'time' not in key}
    assert measured and all(np.isnan(value) or validation[key] == value for key, value in measured.items())


def test_predict_writes_the_folder_s_classes(trained, folders, det_config, seg_config, tmp_path, capsys):
    run_tool(
        *('predict', '--data', folders['det'], det_config, trained['det'] / 'epoch_1.pth'),
        *('--out-dir', tmp_path / 'det', '--out', tmp_path / 'results.json', '--score-thr', 0.05),
        *('--cfg-options', 'model.test_cfg.max_per_img=9'),
    )
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [category['name'] for category in results['categories']] == ['Auto', 'Boot', 'Flugzeug']
    names = sorted(path.name for path in (folders['det'] / 'images/val').iterdir())
    assert sorted(Path(image['file_name']).name for image in results['images']) == names
    assert sorted(path.name for path in (tmp_path / 'det').iterdir()) == names

    run_tool(
        *('predict', '--data', folders['seg'], seg_config, trained['seg'] / 'iter_2.pth'),
        *('--out-dir', tmp_path / 'seg', '--out', tmp_path / 'labels'),
    )
    count = len(Config.fromfile(trained['seg'] / seg_config.name).train_dataloader.dataset.metainfo.classes)
    written = sorted((tmp_path / 'labels').iterdir())
    assert len(written) == 2  # a fifth of the images
    for path in written:
        image = folders['seg'] / f'images/{path.stem}.jpg'
        labels = np.asarray(Image.open(path))
        assert labels.shape == read_head(image).shown[::-1] and labels.max() < count


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_browse(kind, folders, request, tmp_path, capsys):
    config = request.getfixturevalue(f'{kind}_config')
    run_tool('data/browse', config, '--data', folders[kind], '--number', 2, '--out-dir', tmp_path)
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    sizes = {Image.open(path).size for path in printed}
    assert sizes == ({(128, 96)} if kind == 'det' else {(64, 64)})  # as Resize and RandomCrop leave them


def test_weights_of_a_backbone_or_of_the_whole(trained, det_config, tmp_path, capsys):
    tool = load_tool('train')
    whole = str(trained['det'] / 'epoch_1.pth')
    cfg = tool.cli.load_config(
        str(det_config), {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='x.pth')}
    )
    tool.use_weights(cfg, whole)
    assert cfg.load_from == whole and 'init_cfg' not in cfg.model.backbone
    assert 'is of a whole model' in capsys.readouterr().out

    weights = torch.load(whole, weights_only=False)['state_dict']
    bare = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    torch.save(bare, tmp_path / 'backbone.pth')
    tool.use_weights(cfg, str(tmp_path / 'backbone.pth'))
    assert cfg.load_from is None and 'is of a backbone alone' in capsys.readouterr().out
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert all(torch.equal(value, bare[key]) for key, value in model.backbone.state_dict().items())


def test_what_is_refused(folders, det_config, seg_config, tmp_path, capsys):
    for args, words in (
        (['train', det_config, '--data', folders['seg']], 'no annotations of objects'),
        (['train', seg_config, '--data', folders['det']], 'no image has labels of its pixels'),
        (['train', seg_config, '--zero-label', 'void'], 'add --data FOLDER'),
        (['train', det_config, '--data', folders['det'], '--val-share', 2], '--val-share 2.0'),
        (['train', det_config, '--data', folders['det'] / 'nowhere'], 'is no folder'),
        (['train', det_config, '--load-from', 'x.pth', '--resume'], 'give one of them'),
    ):
        with pytest.raises(SystemExit) as ended:
            run_tool(*args, '--work-dir', tmp_path / 'work')
        told = capsys.readouterr().err
        assert ended.value.code == 2 and words in told and 'Traceback' not in told, told
        assert not (tmp_path / 'work').exists()
