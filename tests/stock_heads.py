"""Stock models of both toolboxes on our backbones: which there are, and what follows from another backbone."""

import copy
from collections.abc import Iterator
from pathlib import Path

import mmvisattn  # noqa: F401  with it the bases of the toolboxes resolve

import mmdet
import mmseg
import torch
from mmdet.models.roi_heads.bbox_heads import DIIHead
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

ROOTS = {toolbox.__name__: Path(toolbox.__file__).parent / '.mim/configs' for toolbox in (mmdet, mmseg)}
WIDTHS = [16, 24, 32, 40]
WIDTH = 48
PYRAMID = 32  # what a simple pyramid hands to heads that take any width

TRANSFORMER = dict(embed_dims=WIDTH, depth=2, num_heads=3, mlp_ratio=2)
NETWORKS = {
    'FCViT': dict(arch=dict(embed_dims=WIDTHS, depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))),
    'DefocusMamba': dict(
        arch=dict(embed_dims=WIDTH, depth=2, d_inner=64, d_state=4, dt_rank=2, group_norm_size=16), pretrain_size=64
    ),
    'DefocusViT': dict(arch=TRANSFORMER, pretrain_size=64),
    'DefocusRetNet': dict(arch=TRANSFORMER, pretrain_size=64),
    'FlexViT': dict(arch=TRANSFORMER, pretrain_size=64),
}
NECK = 'FlexAttentionNeck'  # on FCViT, after the neck that the stock model has, or an FPN where it has none
COLUMNS = [*NETWORKS, NECK]

HEADS = {
    'RetinaNet': 'mmdet/retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet/atss/atss_r50_fpn_1x_coco.py',
    'GFL': 'mmdet/gfl/gfl_r50_fpn_1x_coco.py',
    'TOOD': 'mmdet/tood/tood_r50_fpn_1x_coco.py',
    'VFNet': 'mmdet/vfnet/vfnet_r50_fpn_1x_coco.py',
    'PAA': 'mmdet/paa/paa_r50_fpn_1x_coco.py',
    'AutoAssign': 'mmdet/autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'YOLOX': 'mmdet/yolox/yolox_s_8xb8-300e_coco.py',
    'RTMDet': 'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'RTMDet-Ins': 'mmdet/rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'Faster R-CNN': 'mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'Cascade R-CNN': 'mmdet/cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'mmdet/cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'PointRend (mmdet)': 'mmdet/point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
    'HTC': 'mmdet/htc/htc_r50_fpn_1x_coco.py',
    'SCNet': 'mmdet/scnet/scnet_r50_fpn_1x_coco.py',
    'Sparse R-CNN': 'mmdet/sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'QueryInst': 'mmdet/queryinst/queryinst_r50_fpn_1x_coco.py',
    'DETR': 'mmdet/detr/detr_r50_8xb2-150e_coco.py',
    'DAB-DETR': 'mmdet/dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'Conditional DETR': 'mmdet/conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'Deformable DETR': 'mmdet/deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'mmdet/dino/dino-4scale_r50_8xb2-12e_coco.py',
    'DDQ': 'mmdet/ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former, instances': 'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'Mask2Former, panoptic': 'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'MaskFormer (mmdet)': 'mmdet/maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'SOLO': 'mmdet/solo/solo_r50_fpn_1x_coco.py',
    'SOLOv2': 'mmdet/solov2/solov2_r50_fpn_1x_coco.py',
    'CondInst': 'mmdet/condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'BoxInst': 'mmdet/boxinst/boxinst_r50_fpn_ms-90k_coco.py',
    'Panoptic FPN': 'mmdet/panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'Semantic FPN': 'mmseg/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
    'UPerNet': 'mmseg/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'SegFormer': 'mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'PSPNet': 'mmseg/pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'DeepLabV3+': 'mmseg/deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py',
    'OCRNet': 'mmseg/ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512.py',
    'PointRend (mmseg)': 'mmseg/point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'Mask2Former (mmseg)': 'mmseg/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'MaskFormer (mmseg)': 'mmseg/maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    'SegNeXt': 'mmseg/segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'K-Net': 'mmseg/knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',
    'DPT': 'mmseg/dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py',
    'Segmenter': 'mmseg/segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
    'SETR': 'mmseg/setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py',
    'DANet': 'mmseg/danet/danet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'CCNet': 'mmseg/ccnet/ccnet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'EncNet': 'mmseg/encnet/encnet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'ISANet': 'mmseg/isanet/isanet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'FCN': 'mmseg/fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py',
    'ANN': 'mmseg/ann/ann_r50-d8_4xb4-160k_ade20k-512x512.py',
    'APCNet': 'mmseg/apcnet/apcnet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'DMNet': 'mmseg/dmnet/dmnet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'GCNet': 'mmseg/gcnet/gcnet_r50-d8_4xb4-160k_ade20k-512x512.py',
    'Non-local': 'mmseg/nonlocal_net/nonlocal_r50-d8_4xb4-160k_ade20k-512x512.py',
    'PSANet': 'mmseg/psanet/psanet_r50-d8_4xb4-160k_ade20k-512x512.py',
}

# Those whose decode heads mmseg itself does not call as they are to be called in tensor mode, on any backbone.
NO_TENSOR_MODE = ('PointRend (mmseg)', 'Mask2Former (mmseg)', 'MaskFormer (mmseg)')

# What costs time and is the same thing with less of it; and a head that is sure of nothing is to answer all the same.
AT_MOST = dict(
    score_thr=0.0,
    filter_thr=0.0,
    mask_thr=0.0,
    max_per_img=10,
    nms_pre=100,
    num=16,
    num_dn_queries=10,
    num_layers=3,
    num_points=128,
    num_proposals=10,
    num_queries=20,
    stacked_convs=1,
)


def dicts(node: object) -> Iterator[ConfigDict]:
    """A config and all dicts in it."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from dicts(child)


def replace_backbone(model: ConfigDict, network: str) -> None:
    """Put a network of ours into a stock model, and the channel numbers that follow; all else stays.

    FCViT has four maps as a ResNet has. A plain network has one: a head of a single scale takes the map itself, all
    others the simple pyramid of it.

    Args:
        model (ConfigDict): The stock model, changed in place.
        network (str): One of :data:`COLUMNS`.
    """
    with_neck = network == NECK
    if with_neck:
        network = 'FCViT'
    backbone = dict(NETWORKS[network], type=f'mmvisattn.{network}')
    model.pop('pretrained', None)
    model.backbone = ConfigDict(backbone)
    if with_neck:
        _connect_pyramid(model)
    elif network == 'FCViT':
        _connect_stages(model)
    else:
        _connect_map(model)


def _connect_stages(model: ConfigDict) -> None:
    if neck := model.get('neck'):
        maps = len(neck.in_channels)
        if maps < 4:
            model.backbone.out_indices = tuple(range(4 - maps, 4))
        neck.in_channels = WIDTHS[-maps:]
    else:
        _set_channels(model, WIDTHS)


def _connect_pyramid(model: ConfigDict) -> None:
    """The stages, the pyramid of a stock neck, and FlexAttention between two levels that every such head reads."""
    if not model.get('neck'):
        model.neck = ConfigDict(type='FPN', in_channels=WIDTHS, out_channels=PYRAMID, num_outs=4)
        _set_channels(model, [PYRAMID] * 4)
    _connect_stages(model)
    low_level = min(model.neck.get('num_outs', len(model.neck.in_channels)) - 1, 3)
    flex = dict(low_level=low_level, high_level=low_level - 1, num_layers=1, num_heads=2, mlp_ratio=2)
    flex.update(in_channels=model.neck.out_channels)
    model.neck = [model.neck, ConfigDict(flex, type=f'mmvisattn.{NECK}')]


def _connect_map(model: ConfigDict) -> None:
    pyramid = ConfigDict(type='mmvisattn.SimpleFPN', in_channels=WIDTH, out_channels=PYRAMID, num_outs=4)
    neck = model.get('neck')
    if neck is None:
        if _is_single_scale(model):
            for head in _readers(model):
                head.in_index = 0
            _set_channels(model, [WIDTH])
        else:
            model.neck = pyramid
            _set_channels(model, [PYRAMID] * 4)
    elif len(neck.in_channels) == 1:
        neck.in_channels = [WIDTH]
    elif neck.type in ('FPN', 'ChannelMapper'):
        start_level = neck.get('start_level', 4 - len(neck.in_channels))
        pyramid.update(out_channels=neck.out_channels, num_outs=neck.num_outs, start_level=start_level)
        model.neck = pyramid
    else:  # such as YOLOXPAFPN, which goes over the levels once more
        maps = len(neck.in_channels)
        neck.in_channels = [PYRAMID] * maps
        pyramid.update(num_outs=maps, start_level=4 - maps)
        model.neck = [pyramid, neck]


def _readers(model: ConfigDict) -> list[ConfigDict]:
    """The heads that read maps of the backbone themselves: those that say which, or else all of them."""
    heads = [model.get(name) for name in ('panoptic_head', 'decode_head', 'auxiliary_head')]
    return [head for head in dicts(heads) if 'in_index' in head] or [head for head in heads if head]


def _is_single_scale(model: ConfigDict) -> bool:
    return all(isinstance(head.in_channels, int) and 'c1_in_channels' not in head for head in _readers(model))


def _set_channels(model: ConfigDict, channels: list[int]) -> None:
    for head in _readers(model):
        index = head.get('in_index', -1 if isinstance(head.in_channels, int) else range(len(channels)))
        head.in_channels = channels[index] if isinstance(index, int) else [channels[i] for i in index]
        if 'c1_in_channels' in head:
            head.c1_in_channels = channels[0]


def takes_pyramid(head: str) -> bool:
    """Whether a stock model works on several scales, between which FlexAttentionNeck can stand."""
    model = load(head).model
    return len(model.neck.in_channels) > 1 if model.get('neck') else not _is_single_scale(model)


def load(head: str) -> Config:
    """A stock config, as it is installed."""
    scope, _, path = HEADS[head].partition('/')
    return Config.fromfile(ROOTS[scope] / path, import_custom_modules=False)


def build(stock: Config, network: str) -> BaseModel:
    """A stock model with the backbone of ours, which answers however unsure it is."""
    config, scope = copy.deepcopy(stock.model), stock.default_scope
    replace_backbone(config, network)
    for part in dicts(config):
        part.update(
            {key: min(part[key], most) for key, most in AT_MOST.items() if isinstance(part.get(key), int | float)}
        )
        if part.get('type') == 'BatchFixedSizePad':
            part.size = (96, 96)
    if scope == 'mmseg':
        config.data_preprocessor.update(size=None, size_divisor=32)
    elif asks_for(stock, 'with_mask'):
        config.data_preprocessor.pad_mask = True  # else masks of images of several sizes do not fit one another
    with DefaultScope.overwrite_default_scope(scope):
        model = revert_sync_batchnorm(MODELS.build(config))
        model.init_weights()
    for part in model.modules():
        if isinstance(part, DIIHead):
            torch.nn.init.zeros_(part.fc_reg.weight)  # mmdet cannot paste the mask of a box outside of the picture
    return model


SIZES = [(64, 96), (96, 64)]


def asks_for(stock: Config, annotations: str) -> bool:
    """Whether a detector learns from ``'with_mask'`` or ``'with_seg'``."""
    loaded = list(dicts(stock.train_dataloader))
    return any(part.get(annotations) or part.get('type') == 'LoadPanopticAnnotations' for part in loaded)


def make_batch(stock: Config) -> dict:
    """Two images of different size, with what the stock config loads of annotations."""
    if stock.default_scope == 'mmdet':
        data = demo_mm_inputs(
            2,
            [(3, *size) for size in SIZES],
            num_classes=40,
            with_mask=asks_for(stock, 'with_mask'),
            with_semantic=asks_for(stock, 'with_seg'),
        )
        for sample in data['data_samples']:
            sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
        return data
    samples = [SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)) for size in SIZES]
    for sample, size in zip(samples, SIZES):
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, *size)))
    return dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES], data_samples=samples)


def tensors(node: object) -> Iterator[Tensor]:
    """All tensors in what a model answers."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict):
        yield from tensors(list(node.values()))
    elif isinstance(node, list | tuple):
        for child in node:
            yield from tensors(child)


def untrained(model: BaseModel) -> list[str]:
    """The parameters of ours that a backward has left without a gradient."""
    ours = [module for module in model.modules() if type(module).__module__.startswith('mmvisattn.')]
    parameters = {parameter for module in ours for parameter in module.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter in parameters and parameter.requires_grad and parameter.grad is None
    ]


def run(head: str, network: str) -> None:
    """Tensor mode and predict, then loss and backward, of a stock model on a network of ours.

    Args:
        head (str): Name of the model in :data:`HEADS`.
        network (str): One of :data:`COLUMNS`.

    Raises:
        AssertionError: If something is not finite, a picture is without an answer or a parameter without a gradient.
    """
    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=0))  # as the runner does
    stock = load(head)
    model = build(stock, network).eval()
    data = make_batch(stock)
    with torch.no_grad():
        # mmseg takes images of one size alone when it predicts, mmdet any.
        together = stock.default_scope == 'mmdet'
        for batch in [data] if together else [{key: [value[i]] for key, value in data.items()} for i in range(2)]:
            batch = model.data_preprocessor(copy.deepcopy(batch), False)
            if head not in NO_TENSOR_MODE:
                answers = list(tensors(model(**batch, mode='tensor')))
                assert answers and all(answer.isfinite().all() for answer in answers)
            for result in model(**batch, mode='predict'):
                check_prediction(result)
    model.train()
    loss, logs = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    assert all(value.isfinite().all() for value in tensors(dict(logs)))
    loss.backward()
    assert untrained(model) == []
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def check_prediction(result: object) -> None:
    """Whether a picture has an answer of its own size, with nothing that is not finite."""
    maps = [getattr(result, name) for name in ('pred_sem_seg', 'pred_panoptic_seg') if hasattr(result, name)]
    for found in maps:
        assert all(value.shape[-2:] == result.ori_shape for value in found.values())
    if hasattr(result, 'pred_instances'):
        found = result.pred_instances
        assert len(found) > 0
        assert all(value.isfinite().all() for value in tensors([found.scores, found.get('bboxes')]))
        if 'masks' in found:
            assert found.masks.shape[-2:] == result.ori_shape
    else:
        assert maps
