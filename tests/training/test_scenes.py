"""Trainings of the tables in `configs/mini`, on the scenes that the configs are made for."""

import pytest

from .utils import MINUTES, ade_options, coco_options, train


@pytest.mark.slow
@pytest.mark.timeout(90 * MINUTES)
@pytest.mark.parametrize('form', ['mamba', 'vit', 'retnet'])
def test_defocus_learns_the_scenes(scenes, tmp_path, form):
    segmentor, detector = tmp_path / 'segmentor', tmp_path / 'detector'
    config = f'configs/mini/defocus-{form}-mini_upernet_ade20k.py'
    _, metrics = train(config, segmentor, *ade_options(scenes), 'randomness.seed=0')
    assert metrics['mIoU'] >= 40
    start = (segmentor / 'last_checkpoint').read_text().strip()
    config = f'configs/mini/mask-rcnn_defocus-{form}-mini_simple-fpn_coco.py'
    _, metrics = train(config, detector, *coco_options(scenes), f'load_from={start}', 'randomness.seed=0')
    assert metrics['coco/bbox_mAP_50'] >= 0.4
