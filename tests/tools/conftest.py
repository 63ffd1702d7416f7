"""Mini data, small configs and one interrupted and resumed training a toolbox, shared by the tests of the tools."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from tests.shared import made_once

from .utils import ARCH, ROOT, TOOLS, run_tool

DET_CONFIG = f"""
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmvisattn'], allow_failed_imports=False)
custom_hooks = [dict(type='mmvisattn.CheckpointReportHook')]
model = dict(
    backbone=dict(_delete_=True, type='mmvisattn.FCViT', arch={ARCH}, drop_path_rate=0.1),
    neck=dict(in_channels=[16, 16, 32, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0, max_per_img=1000),
)
data_root = '{{data_root}}'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 96)),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=False)),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json', metric_items=['mAP', 'AR@1000'])
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = []
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1))
"""

SEG_CONFIG = f"""
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_40k.py',
]
custom_imports = dict(imports=['mmvisattn'], allow_failed_imports=False)
custom_hooks = [dict(type='mmvisattn.CheckpointReportHook')]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(_delete_=True, type='mmvisattn.FCViT', arch={ARCH}),
    neck=dict(in_channels=[16, 16, 32, 32], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=150),
)
data_root = '{{data_root}}'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ctrl-C after so many iterations."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt


@dataclass
class Trained:
    """A training that was interrupted and resumed."""

    config: Path
    work_dir: Path
    checkpoint: Path
    images: Path


@pytest.fixture(scope='session')
def mini_data(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        options = '--train 8 --val 3 --size 128 96 --shares 0.5 0.5 0'.split()
        subprocess.run([sys.executable, TOOLS / 'data/make_mini.py', folder, *options], check=True)

    return made_once(tmp_path_factory, 'mini', make)


@pytest.fixture(scope='session')
def det_config(mini_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('configs') / 'tiny-retinanet.py'
    path.write_text(DET_CONFIG.replace('{data_root}', f'{mini_data}/coco/'))
    return path


@pytest.fixture(scope='session')
def seg_config(mini_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('configs') / 'tiny-semantic-fpn.py'
    path.write_text(SEG_CONFIG.replace('{data_root}', f'{mini_data}/ade/ADEChallengeData2016'))
    return path


@pytest.fixture(scope='session')
def shipped_configs(mini_data, tmp_path_factory) -> dict[str, Path]:
    """The shipped configs of ``configs/mini``, for one iteration on the data of these tests."""
    shipped = {'det': 'mask-rcnn_fcvit-mini_fpn_coco.py', 'seg': 'fcvit-mini_fpn_ade20k.py'}
    roots = {'det': f'{mini_data}/coco/', 'seg': f'{mini_data}/ade/ADEChallengeData2016'}
    folder = tmp_path_factory.mktemp('shipped')
    for name, config in shipped.items():
        (folder / config).write_text(
            f"_base_ = '{ROOT}/configs/mini/{config}'\n"
            f"data = dict(data_root='{roots[name]}')\n"
            'train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)\n'
            "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1)\n"
            'val_cfg = val_dataloader = val_evaluator = None\n'
            'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False))\n'
        )
    return {name: folder / config for name, config in shipped.items()}


@pytest.fixture(scope='session')
def det(det_config, mini_data, tmp_path_factory) -> Trained:
    """3 epochs of 4 iterations, interrupted in the second epoch."""

    def make(work_dir: Path) -> None:
        flags = ['--work-dir', work_dir, '--auto-scale-lr', '--resume']
        with pytest.raises(KeyboardInterrupt):
            hook = "custom_hooks=[dict(type='InterruptHook',after=6)]"
            run_tool('train', interrupted_copy(det_config, hook), *flags)
        run_tool('train', det_config, *flags, '--cfg-options', 'optim_wrapper.optimizer.momentum=0.8')

    work_dir = made_once(tmp_path_factory, 'det', make)
    return Trained(det_config, work_dir, work_dir / 'epoch_3.pth', mini_data / 'coco/val2017')


@pytest.fixture(scope='session')
def seg(seg_config, mini_data, tmp_path_factory) -> Trained:
    """6 iterations with a checkpoint every 2, interrupted after 5."""

    def make(work_dir: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            hook = "custom_hooks=[dict(type='InterruptHook',after=5)]"
            run_tool('train', interrupted_copy(seg_config, hook), '--work-dir', work_dir)
        run_tool('train', seg_config, '--work-dir', work_dir, '--resume', 'auto')

    work_dir = made_once(tmp_path_factory, 'seg', make)
    images = mini_data / 'ade/ADEChallengeData2016/images/validation'
    return Trained(seg_config, work_dir, work_dir / 'iter_6.pth', images)


def interrupted_copy(config: Path, hook: str) -> Path:
    path = config.with_name(f'{config.stem}-interrupted.py')
    path.write_text(f"_base_ = './{config.name}'\n{hook}\n")
    return path
