"""Ways of training that stock configs bring, through the tools and on our backbones."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image, ImageOps

from ..stock_heads import NETWORKS, replace_backbone
from .conftest import interrupted_copy
from .utils import read_log, read_metrics, run_tool

SCALE = (128, 96)
MIXED = [
    dict(type='Mosaic', img_scale=SCALE, pad_val=114.0),
    dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-SCALE[0] // 2, -SCALE[1] // 2)),
    dict(type='MixUp', img_scale=SCALE, ratio_range=(0.8, 1.6), pad_val=114.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='PackDetInputs'),
]


@HOOKS.register_module()
class NoteInputsHook(Hook):
    """Writes the sizes of the images that the model is given, and the number of their boxes, into a file."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        boxes = sum(len(sample.gt_instances) for sample in data_batch['data_samples'])
        sizes = [tuple(image.shape[1:]) for image in data_batch['inputs']]
        with Path(runner.work_dir, 'inputs.jsonl').open('a') as file:
            file.write(json.dumps([sizes, boxes]) + '\n')


def write(cfg: Config, path: Path) -> Path:
    cfg.dump(str(path))
    return path


def noted(work_dir: Path) -> list[list]:
    return [json.loads(line) for line in (work_dir / 'inputs.jsonl').read_text().splitlines()]


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)['state_dict']


def assert_resumes(config: Path, folder: Path, after: int, last: str, *options: str) -> None:
    """Train at one go and with an interruption; both end with the same weights."""
    flags = ['--cfg-options', 'randomness.seed=1', *options]
    run_tool('train', config, '--work-dir', folder / 'whole', *flags)
    parts = ['--work-dir', folder / 'parts', '--resume', *flags]
    hooks = [*Config.fromfile(config).custom_hooks, dict(type='InterruptHook', after=after)]
    with pytest.raises(KeyboardInterrupt):
        run_tool('train', interrupted_copy(config, f'custom_hooks = {[dict(hook) for hook in hooks]}'), *parts)
    run_tool('train', config, *parts)
    whole, resumed = (state(folder / name / last) for name in ('whole', 'parts'))
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


# Mosaic and mixup


@pytest.fixture
def mixed_config(det_config, tmp_path) -> Path:
    """Mosaic and mixup in the first of three epochs: mmdet's hook counts the last one and the one before."""
    cfg = Config.fromfile(det_config)
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = dataset.pipeline[:2]  # pictures and boxes
    cfg.train_dataloader.dataset = ConfigDict(type='MultiImageMixDataset', dataset=dataset, pipeline=MIXED)
    cfg.custom_hooks += [dict(type='YOLOXModeSwitchHook', num_last_epochs=1), dict(type='NoteInputsHook')]
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return write(cfg, tmp_path / 'mixed.py')


def test_mosaic_and_mixup(mixed_config, tmp_path):
    run_tool('train', mixed_config, '--work-dir', tmp_path / 'work', '--cfg-options', 'randomness.seed=0')
    assert all(np.isfinite(step['loss']) for step in read_log(tmp_path / 'work'))
    boxes = [number for _, number in noted(tmp_path / 'work')]
    # A mosaic has four pictures, and mixup adds another; later epochs have the pictures as they are.
    assert len(boxes) == 12 and np.mean(boxes[:4]) > 1.5 * np.mean(boxes[4:])


@pytest.mark.parametrize(('workers', 'after'), [(0, 6), (1, 10)])
def test_mosaic_and_mixup_resumed(mixed_config, tmp_path, workers, after):
    loader = [f'train_dataloader.num_workers={workers}', f'train_dataloader.persistent_workers={workers > 0}']
    assert_resumes(mixed_config, tmp_path, after, 'epoch_3.pth', *loader)


# Several scales


@pytest.mark.parametrize('network', NETWORKS)
def test_several_scales(det_config, tmp_path, network):
    cfg = Config.fromfile(det_config)
    replace_backbone(cfg.model, network)
    cfg.model.bbox_head.in_channels = cfg.model.neck.out_channels
    scales = [(64, 48), (96, 72), (128, 96), (160, 120)]
    cfg.train_dataloader.dataset.pipeline[2] = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
    cfg.custom_hooks += [dict(type='NoteInputsHook')]
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    config = write(cfg, tmp_path / 'scales.py')
    assert_resumes(config, tmp_path, 6, 'epoch_3.pth')
    assert all(np.isfinite(step['loss']) for step in read_log(tmp_path / 'whole'))
    sizes = {tuple(size) for batch, _ in noted(tmp_path / 'whole') for size in batch}
    assert len(sizes) >= 3 and sizes <= {(height, width) for width, height in scales}


# At test time


def test_augmentation_of_a_detector_at_several_scales(det, tmp_path):
    cfg = Config.fromfile(det.config)
    scales = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((96, 72), SCALE)]
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    views = [scales, flips, [dict(type='PackDetInputs', meta_keys=keys)]]
    cfg.tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=views)]
    cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=1000))
    config = write(cfg, tmp_path / 'tta.py')
    run_tool('test', config, det.checkpoint, '--tta', '--work-dir', tmp_path, '--out', tmp_path / 'tta.pkl')
    run_tool('test', det.config, det.checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'plain.pkl')
    plain, merged = (pickle.loads((tmp_path / f'{name}.pkl').read_bytes()) for name in ('plain', 'tta'))
    for one, all_views in zip(plain, merged):
        one, all_views = one['pred_instances'], all_views['pred_instances']
        # One of the four views is the plain one: its best box gives way to none but a better one.
        assert all_views['scores'].max() >= one['scores'].max() - 1e-6
        assert not torch.equal(all_views['bboxes'], one['bboxes'])
        assert all_views['bboxes'].max(0).values.tolist() <= [128.1, 96.1, 128.1, 96.1]  # of the picture as it was


def test_augmentation_of_a_segmentor_does_not_care_which_way_round(seg, mini_data, tmp_path):
    root, mirrored = mini_data / 'ade/ADEChallengeData2016', tmp_path / 'mirrored'
    for folder in ('images/validation', 'annotations/validation'):
        (mirrored / folder).mkdir(parents=True)
        for path in (root / folder).iterdir():
            ImageOps.mirror(Image.open(path)).save(mirrored / folder / path.name, format='PNG')  # nothing is lost
    # After few iterations it may see one class everywhere, mirrored or not; with this head it sees several.
    saved = torch.load(seg.checkpoint, weights_only=False)
    torch.manual_seed(0)
    saved['state_dict']['decode_head.conv_seg.weight'].normal_()
    checkpoint = tmp_path / 'several_classes.pth'
    torch.save(saved, checkpoint)
    equal = {}
    for flags in ([], ['--tta']):
        for name, data in (('plain', root), ('mirrored', mirrored)):
            options = ['--cfg-options', f'test_dataloader.dataset.data_root={data}']
            out = ['--work-dir', tmp_path / 'work', '--out', tmp_path / name]
            run_tool('test', seg.config, checkpoint, *flags, *out, *options)
        pairs = [(path, tmp_path / 'mirrored' / path.name) for path in (tmp_path / 'plain').iterdir()]
        assert len(pairs) == 3
        same = [np.asarray(Image.open(a)) == np.asarray(Image.open(b))[:, ::-1] for a, b in pairs]
        equal[len(flags)] = np.mean(same)
    assert equal[1] > 0.99 and equal[0] < 0.95, equal


# Averaged weights


def test_what_is_tested_is_the_average_of_the_weights(seg_config, tmp_path):
    cfg = Config.fromfile(seg_config)
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.05)]
    config = write(cfg, tmp_path / 'ema.py')
    run_tool('train', config, '--work-dir', tmp_path / 'work', '--cfg-options', 'randomness.seed=0')
    validation = read_log(tmp_path / 'work')[-1]
    checkpoint = tmp_path / 'work/iter_6.pth'
    # Whether or not the config of the test has the hook.
    for name in (config, seg_config):
        run_tool('test', name, checkpoint, '--work-dir', tmp_path / 'test')
        metrics = read_metrics(tmp_path / 'test')
        assert all(metrics[key] == validation[key] for key in ('aAcc', 'mIoU', 'mAcc'))
    saved = torch.load(checkpoint, weights_only=False)
    last = {key.removeprefix('module.'): value for key, value in saved['ema_state_dict'].items() if 'module.' in key}
    assert not all(torch.equal(value, saved['state_dict'][key]) for key, value in last.items())
    torch.save(dict(saved, state_dict=last), tmp_path / 'last.pth')
    run_tool('test', seg_config, tmp_path / 'last.pth', '--work-dir', tmp_path / 'test')
    assert read_metrics(tmp_path / 'test')['aAcc'] != validation['aAcc']
