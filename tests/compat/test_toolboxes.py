"""Stock detectors and segmentors, shrunken, train and predict on the supplied operators."""

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData

CHANNELS = 16
RESNET18 = [64, 128, 256, 512]


def shrink(config):
    """A ResNet-18 without weights, and narrow everything after it."""
    config.backbone.update(type='ResNet', depth=18, init_cfg=None, frozen_stages=-1, norm_cfg=dict(type='BN'))
    if 'out_channels' in config.get('neck', {}):
        config.neck.update(in_channels=RESNET18[-len(config.neck.in_channels) :], out_channels=CHANNELS)
    for extractor in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if 'roi_head' in config:
            config.roi_head[extractor].out_channels = CHANNELS
    for head in heads(config):
        head.in_channels = CHANNELS
        for key in ('feat_channels', 'conv_out_channels', 'fc_out_channels'):
            if key in head:
                head[key] = CHANNELS


def heads(config):
    yield from (config[key] for key in ('rpn_head', 'bbox_head') if key in config)
    roi_head = config.get('roi_head', {})
    for key in ('bbox_head', 'mask_head'):
        head = roi_head.get(key, [])
        yield from head if isinstance(head, list) else [head]


def shrink_dino(config):
    config.backbone.update(depth=18, init_cfg=None, frozen_stages=-1)
    config.neck.in_channels = RESNET18[1:]
    config.encoder.num_layers, config.decoder.num_layers = 1, 2
    config.num_queries = config.test_cfg.max_per_img = 20
    config.dn_cfg.group_cfg.num_dn_queries = 10


DETECTORS = {
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': shrink,
    'retinanet/retinanet_r50_fpn_1x_coco.py': shrink,
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': shrink,
    'dino/dino-4scale_r50_8xb2-12e_coco.py': shrink_dino,
}


@pytest.mark.parametrize('name', DETECTORS)
def test_detector(name):
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    config = get_config(f'mmdet::{name}').model
    DETECTORS[name](config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config)
        model.init_weights()  # until then DINO's `level_embed` is whatever the memory held
        data = demo_mm_inputs(2, [[3, 64, 64], [3, 48, 80]], num_classes=80, with_mask=True)
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        check_gradients(model, losses)
        model.eval()
        # An untrained head is sure of nothing; let it answer all the same.
        (model.roi_head if 'roi_head' in config else model.bbox_head).test_cfg.score_thr = 0
        with torch.no_grad():
            results = model(**model.data_preprocessor(data, False), mode='predict')
    for result in results:
        found = result.pred_instances
        assert 0 < len(found) <= 100
        assert found.bboxes.isfinite().all() and found.scores.isfinite().all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        if 'roi_head' in config:
            assert found.masks.shape == (len(found), *result.ori_shape[:2])


def shrink_fpn(config):
    config.pretrained = None
    shrink(config)
    config.decode_head.update(in_channels=[CHANNELS] * 4, channels=CHANNELS, norm_cfg=dict(type='BN'))


def shrink_upernet(config):
    config.pretrained = None
    shrink(config)
    config.decode_head.update(in_channels=RESNET18, channels=CHANNELS, norm_cfg=dict(type='BN'))
    config.auxiliary_head.update(in_channels=RESNET18[2], channels=CHANNELS, norm_cfg=dict(type='BN'))


SEGMENTORS = {
    'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py': shrink_fpn,
    'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py': shrink_upernet,
}


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentor(name):
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    config = get_config(f'mmseg::{name}').model
    SEGMENTORS[name](config)
    config.data_preprocessor.update(size=None, size_divisor=32)
    samples = []
    for _ in range(2):
        samples.append(SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64))))
        samples[-1].gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in samples], data_samples=samples)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config)
        model.init_weights()
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        check_gradients(model, losses)
        model.eval()
        with torch.no_grad():
            results = model(**model.data_preprocessor(data, False), mode='predict')
    for result in results:
        assert result.pred_sem_seg.data.shape == (1, 64, 64)
        assert result.pred_sem_seg.data.unique().numel() > 1


def check_gradients(model, losses):
    loss, log = model.parse_losses(losses)
    loss.backward()
    assert all(torch.as_tensor(value).isfinite().all() for value in log.values())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Through head and neck down to the first convolution.
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
