"""Short real trainings through tools/train.py and tools/test.py: they must learn, not only run."""

import pytest

from .utils import SMALL_DETECTOR, coco_options, short, train


@pytest.mark.parametrize(
    ('config', 'epochs', 'box', 'mask'),
    [
        ('mask-rcnn_fcvit-mini_fpn_coco', 5, 0.3, 0.02),
        ('mask-rcnn_defocus-mamba-mini_simple-fpn_coco', 6, 0.15, 0.02),
    ],
)
def test_mask_rcnn_learns(data, tmp_path, config, epochs, box, mask):
    options = [*coco_options(data), *(SMALL_DETECTOR if 'defocus' in config else []), *short(epochs, 'epochs')]
    scalars, metrics = train(f'configs/mini/{config}.py', tmp_path, *options)
    # The losses of boxes rise at first, as more proposals meet an object.
    assert scalars[-1]['loss_rpn_cls'] < 0.3 * scalars[0]['loss_rpn_cls']
    assert scalars[-1]['loss_mask'] < 0.8 * scalars[0]['loss_mask']
    # An untrained detector finds nothing.
    assert metrics['coco/bbox_mAP_50'] > box, metrics
    assert metrics['coco/segm_mAP_50'] > mask, metrics
