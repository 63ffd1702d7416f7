"""Random inputs for backbones and for whole models."""

from typing import cast

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

OBJECTS = 8  # in each image that a detector is given


def random_inputs(network: nn.Module, batch: int, size: tuple[int, int], device: torch.device) -> tuple:
    """What ``network(*inputs)`` takes: images, and for a whole model what a data set tells of them.

    Args:
        network (nn.Module): A backbone, or a detector or segmentor of mmdet or mmseg.
        batch (int): Number of images.
        size (tuple[int, int]): Height and width in pixels.
        device (torch.device): Where to put the inputs.

    Returns:
        tuple: Images (B, 3, H, W), and for a model a list of its toolbox's data samples.
    """
    images = torch.randn(batch, 3, *size, device=device)
    if not isinstance(network, BaseModel):
        return (images,)
    make = _segmentation_sample if hasattr(network, 'decode_head') else _detection_sample
    samples = [make(network, size) for _ in range(batch)]
    for i, sample in enumerate(samples):
        sizes = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
        sample.set_metainfo(dict(img_id=i, scale_factor=(1.0, 1.0), flip=False, **sizes))
    return images, [sample.to(device) for sample in samples]


def _detection_sample(network: nn.Module, size: tuple[int, int]) -> BaseDataElement:
    """Boxes of a tenth to a half of the image's sides, with masks that fill them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0.25, 0.75, (OBJECTS, 2)), rng.uniform(0.1, 0.5, (OBJECTS, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1) * ([size[1], size[0]] * 2)
    masks = np.zeros((OBJECTS, *size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().astype(int)):
        mask[top:bottom, left:right] = 1
    objects = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.zeros(OBJECTS, dtype=torch.int64),
        masks=BitmapMasks(masks, *size),
    )
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return DetDataSample(gt_instances=objects, ignored_instances=nothing)


def _segmentation_sample(network: nn.Module, size: tuple[int, int]) -> BaseDataElement:
    """A class by chance for each pixel."""
    from mmseg.structures import SegDataSample

    labels = torch.randint(cast(int, network.num_classes), (1, *size))
    return SegDataSample(gt_sem_seg=PixelData(data=labels))
