import json
import pickle
from pathlib import Path

import mmdet
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from .utils import load_tool, read_log, read_metrics, run_command, run_tool


def test_train_resumes_at_the_next_epoch(det):
    first, second = (read_log(det.work_dir, index) for index in (0, 1))
    assert [entry['step'] for entry in first if 'loss' in entry] == [1, 2, 3, 4, 5]
    steps = [entry for entry in second if 'loss' in entry]
    assert [entry['step'] for entry in steps] == list(range(5, 13))
    assert all(np.isfinite(entry['loss']) for entry in steps)
    assert (det.work_dir / 'epoch_3.pth').is_file()


def test_train_resumes_at_the_next_iteration(seg):
    steps = [entry['step'] for entry in read_log(seg.work_dir) if 'loss' in entry]
    assert steps == [5, 6]
    assert Path((seg.work_dir / 'last_checkpoint').read_text()).name == 'iter_6.pth'


def test_train_resumes_from_a_named_checkpoint(seg, tmp_path):
    run_tool('train', seg.config, '--work-dir', tmp_path, '--resume', seg.work_dir / 'iter_2.pth')
    assert [entry['step'] for entry in read_log(tmp_path) if 'loss' in entry] == [3, 4, 5, 6]


def test_train_auto_scale_lr(det):
    # lr 0.02 for 16 images; a batch has 2.
    assert read_log(det.work_dir)[0]['lr'] == pytest.approx(0.02 * 2 / 16)


def test_train_cfg_options_reach_the_dumped_config(det):
    cfg = Config.fromfile(det.work_dir / 'tiny-retinanet.py')
    assert cfg.optim_wrapper.optimizer.momentum == 0.8


def test_train_default_work_dir(seg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_tool('train', seg.config, '--cfg-options', 'train_cfg.max_iters=1')
    assert (tmp_path / 'work_dirs/tiny-semantic-fpn/iter_1.pth').is_file()


def test_train_amp_replaces_the_wrapper(det_config):
    tool = load_tool('train')
    cfg = Config.fromfile(det_config)
    tool.use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg.optim_wrapper.loss_scale = 512.0
    tool.use_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='mixed precision needs a GPU')
def test_train_amp_on_a_gpu(det_config, tmp_path):
    run_tool('train', det_config, '--work-dir', tmp_path, '--amp', '--cfg-options', 'train_cfg.max_epochs=1')
    assert all(np.isfinite(entry['loss']) for entry in read_log(tmp_path) if 'loss' in entry)


def test_test_det_measures_what_training_did_and_writes_results(det, tmp_path):
    out = tmp_path / 'results.pkl'
    run_tool(
        *('test', det.config, det.checkpoint, '--work-dir', tmp_path / 'work'),
        *('--out', out, '--show-dir', 'drawn'),
    )
    metrics = read_metrics(tmp_path / 'work')
    validation = read_log(det.work_dir)[-1]
    assert metrics['coco/bbox_AR@1000'] > 0
    assert all(value == validation[key] for key, value in metrics.items() if key.startswith('coco'))

    results = pickle.loads(out.read_bytes())
    images = sorted(image.name for image in det.images.iterdir())
    assert sorted(Path(result['img_path']).name for result in results) == images
    assert all(len(result['pred_instances']['bboxes']) > 0 for result in results)
    assert sorted(image.name for image in (tmp_path / 'work').glob('*/drawn/*')) == images


def test_test_det_tta(det, tmp_path):
    run_tool('test', det.config, det.checkpoint, '--work-dir', tmp_path / 'plain', '--out', tmp_path / 'plain.pkl')
    run_tool('test', det.config, det.checkpoint, '--work-dir', tmp_path / 'tta', '--tta', '--out', tmp_path / 'tta.pkl')
    assert 'coco/bbox_mAP' in read_metrics(tmp_path / 'tta')
    plain, tta = (pickle.loads((tmp_path / f'{name}.pkl').read_bytes()) for name in ('plain', 'tta'))
    # The merged boxes come from both views.
    assert all(
        not torch.equal(a['pred_instances']['bboxes'], b['pred_instances']['bboxes']) for a, b in zip(plain, tta)
    )


def test_test_seg_measures_what_training_did_and_writes_results(seg, tmp_path):
    out, drawn = tmp_path / 'labels', tmp_path / 'drawn'
    run_tool(
        *('test', seg.config, seg.checkpoint, '--work-dir', tmp_path / 'work'),
        *('--out', out, '--show-dir', drawn),
    )
    metrics = read_metrics(tmp_path / 'work')
    validation = read_log(seg.work_dir)[-1]
    assert {'mIoU', 'aAcc'} <= set(metrics)
    assert all(metrics[key] == validation[key] for key in ('mIoU', 'aAcc', 'mAcc'))

    images = sorted(image.stem for image in seg.images.iterdir())
    assert sorted(label.stem for label in out.iterdir()) == images
    label = np.array(Image.open(next(out.iterdir())))
    assert label.shape == (96, 128) and 1 <= label.min() and label.max() <= 150
    assert len(list(drawn.glob('vis_data/vis_image/*.png'))) == len(images)


def test_test_seg_tta(seg, tmp_path):
    run_tool('test', seg.config, seg.checkpoint, '--work-dir', tmp_path, '--tta')
    assert 'mIoU' in read_metrics(tmp_path)


def stock_train(toolbox) -> Path:
    stock = Path(toolbox.__file__).parent / '.mim/tools/train.py'
    return stock if stock.is_file() else Path(toolbox.__file__).parents[1] / 'tools/train.py'  # installed from a clone


@pytest.mark.parametrize(
    'command, name',
    [(('-m', 'mmvisattn', stock_train(mmdet)), 'det'), ((stock_train(mmseg),), 'seg')],
    ids=['det', 'seg'],
)
def test_stock_train_runs_the_shipped_configs_with_spawned_workers(command, name, shipped_configs, tmp_path):
    spawn = ['env_cfg.mp_cfg.mp_start_method=spawn', 'train_dataloader.num_workers=1']
    done = run_command('python', *command, shipped_configs[name], '--work-dir', tmp_path, '--cfg-options', *spawn)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(read_log(tmp_path)[0]['loss'])
    assert (tmp_path / 'iter_1.pth').is_file()


@pytest.mark.parametrize(('toolbox', 'name', 'length'), [(mmdet, 'det', 'max_epochs'), (mmseg, 'seg', 'max_iters')])
def test_stock_train_takes_a_config_that_imports_nothing(toolbox, name, length, request, tmp_path):
    cfg = Config.fromfile(request.getfixturevalue(f'{name}_config'))
    cfg.pop('custom_imports')
    config, work_dir = tmp_path / 'config.py', tmp_path / 'work'
    cfg.dump(str(config))
    options = [f'train_cfg.{length}=1', 'train_cfg.val_interval=1']
    script = stock_train(toolbox)
    done = run_command(
        *('python', '-m', 'mmvisattn', script, config, '--work-dir', work_dir, '--cfg-options', *options)
    )
    assert done.returncode == 0, done.stderr
    assert np.isfinite(read_log(work_dir)[0]['loss'])


def test_module_passes_arguments_and_folder_to_the_script(tmp_path):
    (tmp_path / 'beside.py').write_text('VALUE = 7\n')
    (tmp_path / 'script.py').write_text(
        'import json, sys\nfrom mmcv.ops import nms\nfrom beside import VALUE\n'
        'print(json.dumps([__name__, sys.argv[1:], VALUE]))\n'
    )
    done = run_command('python', '-m', 'mmvisattn', tmp_path / 'script.py', 'a', '--flag')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ['__main__', ['a', '--flag'], 7]
