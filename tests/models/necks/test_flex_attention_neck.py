import copy

from mmvisattn.errors import UserError
from mmvisattn.models.layers.hierarchical_attention import axial_angles
from mmvisattn.models.necks import FlexAttentionNeck

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from torch import nn
from torch._dynamo.testing import CompileCounter

from tests.models.layers.flex_utils import upsample_cells


def build(seed: int = 0, in_channels: int = 24, num_heads: int = 3, **kwargs) -> FlexAttentionNeck:
    """A neck in float64 with sharp attention, and W' other than W."""
    torch.manual_seed(seed)
    neck = FlexAttentionNeck(in_channels, num_heads=num_heads, **kwargs).double()
    neck.init_weights()
    for parameter in neck.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return neck


def pyramid(height: int, width: int, batch: int = 2, levels: int = 5, floor: bool = False) -> list[torch.Tensor]:
    """Levels from stride 4 on for an image of ``height`` × ``width`` pixels."""
    sizes = [(-(-height // 4), -(-width // 4))]
    while len(sizes) < levels:
        sizes.append(tuple(n // 2 if floor else -(-n // 2) for n in sizes[-1]))
    return [torch.randn(batch, 24, *size, dtype=torch.double) for size in sizes]


def selections(neck: FlexAttentionNeck, inputs: list[torch.Tensor]) -> list:
    """What is selected."""
    seen = []
    handle = neck.selector.register_forward_hook(lambda module, args, selection: seen.append(selection))
    with torch.no_grad():
        neck(inputs)
    handle.remove()
    return seen


# What the neck computes.


def test_all_selected_equals_attention_over_all_tokens_of_both_levels():
    neck = build(select_ratio=1.0, low_level=2, high_level=1).eval()
    inputs = pyramid(70, 108)  # 18×27, 9×14, 5×7: cells reach beyond the fine level
    outs = neck(inputs)
    low, high = (inputs[i].flatten(2).transpose(1, 2) for i in (2, 1))
    low_angles = axial_angles((5, 7), 2, 8, low.device).flatten(0, 1)[None]
    high_angles = axial_angles((9, 14), 1, 8, low.device).flatten(0, 1)[None]
    low, _ = neck.blocks[0](low, angles=low_angles)
    both = torch.cat([low, high], 1)
    for block in neck.blocks[1:]:
        both = block.forward_both(both, 35, angles=torch.cat([low_angles, high_angles], 1))
    low = both[:, :35]
    high = both[:, 35:]
    torch.testing.assert_close(outs[2], low.transpose(1, 2).unflatten(2, (5, 7)))
    torch.testing.assert_close(outs[1], high.transpose(1, 2).unflatten(2, (9, 14)))


def test_nothing_selected_refines_the_coarse_level_alone():
    neck = build(select_ratio=0.0).eval()
    inputs = pyramid(128, 192)
    outs = neck(inputs)
    assert torch.equal(outs[1], inputs[1])
    assert not torch.isclose(outs[3], inputs[3]).any()


@pytest.mark.parametrize('floor', [False, True])
@pytest.mark.parametrize('size', [(128, 192), (100, 150), (90, 77)])
def test_all_levels_keep_their_shape_and_unselected_places_their_value(size, floor):
    neck = build(select_ratio=0.3).eval()
    inputs = pyramid(*size, floor=floor)
    outs = neck(inputs)
    assert isinstance(outs, tuple) and [out.shape for out in outs] == [x.shape for x in inputs]
    for level in (0, 2, 4):
        assert torch.equal(outs[level], inputs[level])
    height, width = inputs[1].shape[2:]
    shape = (-(-height // 4), -(-width // 4))
    (selection,) = selections(neck, inputs)
    chosen = selection.mask(shape)
    chosen = upsample_cells(chosen, (4 * shape[0], 4 * shape[1]))[:, :height, :width]
    changed = (outs[1] != inputs[1]).any(1)
    assert torch.equal(changed, chosen) and 0 < chosen.sum() < chosen.numel()


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_an_image_in_a_batch_gets_what_it_gets_alone(mode):
    neck = build(select_mode=mode, select_threshold=120).eval()
    inputs = pyramid(100, 150, batch=3)
    for x in inputs:
        x[1] = 0.5  # a plain picture
    if mode == 'threshold':
        assert len(set(selections(neck, inputs)[0].keep.sum(1).tolist())) > 1
    whole = neck(inputs)
    for i in range(3):
        alone = neck([x[i : i + 1] for x in inputs])
        torch.testing.assert_close(alone, tuple(out[i : i + 1] for out in whole))


def padded(size: tuple[int, int], content: list[tuple[int, int]], seed: int = 1) -> tuple[torch.Tensor, list]:
    """Images of some content in a batch of a size, and a pyramid whose padding holds large values."""
    torch.manual_seed(seed)
    images = torch.zeros(len(content), 3, *size, dtype=torch.double)
    levels = [100 * x for x in pyramid(*size, batch=len(content))]
    for i, (height, width) in enumerate(content):
        images[i, :, :height, :width] = torch.randn(3, height, width)
        for level, alone in zip(levels, pyramid(height, width, batch=1)):
            level[i, :, : alone.shape[2], : alone.shape[3]] = alone[0]
    return images, levels


@pytest.mark.parametrize('cell_size', [1, 2])
@pytest.mark.parametrize(
    'settings', [dict(select_ratio=0.2), dict(select_ratio=1.0), dict(select_mode='threshold', select_threshold=100)]
)
def test_padding_is_not_chosen_and_no_part_of_what_an_image_gives(settings, cell_size):
    neck = build(cell_size=cell_size, **settings).eval()
    backbone = nn.Identity()
    neck.watch(backbone)
    content = [(192, 256), (130, 256), (96, 83), (40, 60)]
    images, levels = padded((192, 256), content)
    backbone(images)
    whole = neck(levels)
    backbone(images)
    (selection,) = selections(neck, levels)
    side = 32 * cell_size
    cells = selection.mask((-(-192 // side), -(-256 // side)))
    for i, (height, width) in enumerate(content):
        rows, columns = -(-height // side), -(-width // side)
        assert not cells[i, rows:].any() and not cells[i, :, columns:].any()
        shown = [x[i : i + 1, :, : -(-height // s), : -(-width // s)] for x, s in zip(levels, (4, 8, 16, 32, 64))]
        if 'select_threshold' not in settings:  # the share is one of the cells of the image
            assert cells[i].sum() == max(1, round(settings['select_ratio'] * rows * columns))
        for out, alone in zip(whole, neck(shown)):
            torch.testing.assert_close(out[i : i + 1, :, : alone.shape[2], : alone.shape[3]], alone)


def test_images_are_seen_for_one_pyramid_alone():
    neck = build(select_ratio=1.0).eval()
    backbone = nn.Identity()
    neck.watch(backbone)
    neck.watch(backbone)
    assert len(backbone._forward_pre_hooks) == 1
    images, levels = padded((128, 192), [(128, 192), (64, 64)])
    unaware = neck(levels)
    backbone(images)
    aware = neck(levels)
    assert not torch.allclose(aware[3][1, :, :2, :2], unaware[3][1, :, :2, :2])
    torch.testing.assert_close(aware[3][0], unaware[3][0])
    torch.testing.assert_close(neck(levels), unaware)
    backbone(torch.ones_like(images))  # nothing is padding
    torch.testing.assert_close(neck(levels), unaware)


def test_padding_is_told_in_a_compiled_graph():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.neck = nn.Identity(), build().eval()
            self.neck.watch(self.backbone)

        def forward(self, images: torch.Tensor, levels: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            self.backbone(images)
            return self.neck(levels)

    model, counter = Model(), CompileCounter()
    images, levels = padded((128, 192), [(128, 192), (64, 64)])
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(images, levels), model(images, levels))
    assert counter.frame_count == 1


def test_gradients():
    neck = build(select_ratio=0.3)
    inputs = [x.requires_grad_() for x in pyramid(100, 150)]
    outs = neck(inputs)
    sum(out.square().mean() for out in outs).backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    # what was written back hears of the coarse level, and that of what was selected
    low_grad, high_grad = torch.autograd.grad(build()(inputs)[1].square().sum(), [inputs[3], inputs[1]])
    assert low_grad.abs().max() > 0 and high_grad.abs().min() > 0
    high_grad = torch.autograd.grad(build()(inputs)[3].square().sum(), inputs[1])[0]
    assert 0 < (high_grad != 0).sum() < high_grad.numel()


def test_checkpointing_gives_the_same_gradients():
    inputs = pyramid(100, 150)
    grads = []
    for with_cp in (False, True):
        neck = build(with_cp=with_cp)
        sum(out.square().mean() for out in neck(inputs)).backward()
        grads.append([parameter.grad for parameter in neck.parameters()])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_mixed_precision_keeps_the_residual_stream_in_float32():
    torch.manual_seed(0)
    neck = FlexAttentionNeck(24, num_heads=3, select_ratio=1.0).eval()  # no other selection by rounding
    inputs = [x.bfloat16() for x in pyramid(100, 150)]
    wide = [x.float() for x in inputs]
    expected = neck(wide)
    streams = []
    for block in neck.blocks:
        block.norm2.register_forward_pre_hook(lambda module, args: streams.append(args[0].dtype))
    with torch.autocast('cpu', torch.bfloat16):
        outs, same_types = neck(wide), neck(inputs)
    assert streams == [torch.float32] * 6
    assert all(out.dtype == torch.float32 for out in outs)
    assert all(out.dtype == torch.bfloat16 for out in same_types)
    in_half = copy.deepcopy(neck).bfloat16()(inputs)  # its stream has the type of its weights as well
    assert all(out.dtype == torch.bfloat16 for out in in_half)
    for level in (1, 3):
        error, error_in_half = ((out[level].float() - expected[level]).norm() for out in (outs, in_half))
        assert error < 0.2 * error_in_half


def test_topk_exports():
    neck = build().float().eval()
    inputs = [x.float() for x in pyramid(100, 150)]
    torch.testing.assert_close(torch.export.export(neck, (inputs,)).module()(inputs), neck(inputs))


# Between stock parts.

BACKBONES = dict(
    fcvit=dict(
        type='mmvisattn.FCViT', arch=dict(embed_dims=(8, 16, 16, 24), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
    ),
    resnet=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN')),
    swin=dict(type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=4),
)
CHANNELS = dict(fcvit=[8, 16, 16, 24], resnet=[8, 16, 32, 64], swin=[8, 16, 32, 64])
NECK = dict(type='mmvisattn.FlexAttentionNeck', in_channels=24, num_heads=3)


@pytest.mark.parametrize('name', BACKBONES)
def test_in_a_stock_detector(name):
    from mmdet.utils import register_all_modules  # here, since mmvisattn has to come before it

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = ROOT.build(
            dict(
                type='RetinaNet',
                backbone=BACKBONES[name],
                neck=[dict(type='FPN', in_channels=CHANNELS[name], out_channels=24, num_outs=5), NECK],
                bbox_head=dict(
                    type='RetinaHead',
                    num_classes=3,
                    in_channels=24,
                    stacked_convs=1,
                    feat_channels=24,
                    anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[4, 8, 16, 32, 64]),
                ),
            )
        )
    detector.init_weights()
    x = torch.randn(2, 3, 75, 101)
    scores, boxes = detector(x, mode='tensor')
    assert [tuple(s.shape[2:]) for s in scores] == [(19, 26), (10, 13), (5, 7), (3, 4), (2, 2)]
    sum(s.square().mean() + b.square().mean() for s, b in zip(scores, boxes)).backward()
    assert [n for n, p in detector.neck.named_parameters() if p.grad is None] == []


def test_in_a_stock_segmentor():
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        segmentor = ROOT.build(
            dict(
                type='EncoderDecoder',
                backbone=BACKBONES['fcvit'],
                neck=[dict(type='FPN', in_channels=CHANNELS['fcvit'], out_channels=24, num_outs=4), NECK],
                decode_head=dict(
                    type='FPNHead',
                    in_channels=[24] * 4,
                    in_index=[0, 1, 2, 3],
                    feature_strides=[4, 8, 16, 32],
                    channels=16,
                    num_classes=5,
                ),
            )
        )
    assert segmentor.eval()(torch.randn(1, 3, 96, 64), mode='tensor').shape == (1, 5, 24, 16)


def test_after_a_pyramid_of_floored_sizes():
    simple_fpn = ROOT.build(dict(type='mmvisattn.SimpleFPN', in_channels=16, out_channels=24, num_outs=5))
    levels = simple_fpn([torch.randn(1, 16, 5, 7)])
    neck = ROOT.build(NECK)
    assert [out.shape for out in neck(levels)] == [x.shape for x in levels]


# Wrong use.


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(low_level=1, high_level=1), '`high_level` is 1 and `low_level` 1;.*finer'),
        (dict(low_level=1, high_level=2), 'finer'),
        (dict(low_level=1, high_level=-1), '`high_level` is -1'),
        (dict(in_channels=20), '`in_channels` is 20 and `num_heads` 3'),
        (dict(num_layers=0), '`num_layers` is 0'),
        (dict(select_ratio=2.0), '`select_ratio` is 2.0'),
        (dict(select_mode='all'), "`select_mode` is 'all'"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(**kwargs)


def test_wrong_pyramids():
    inputs = pyramid(128, 192)
    with pytest.raises(UserError, match='given 5 levels, numbered 0 to 4; `low_level` is 5.*num_outs'):
        build(low_level=5)(inputs)
    with pytest.raises(UserError, match='level 3 has 24 channels and `in_channels` is 48'):
        build(in_channels=48)(inputs)
    inputs[3] = F.interpolate(inputs[3], scale_factor=2)
    with pytest.raises(UserError, match=r'level 1 is \(16, 24\) and level 3 \(8, 12\), where it should be 4 times'):
        build()(inputs)
