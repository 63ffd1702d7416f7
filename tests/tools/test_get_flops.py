"""Counts against those made by hand; two FLOPs for a multiply-add."""

import re

from mmvisattn.models.backbones import fcvit
from mmvisattn.models.backbones.defocus_mamba import Mixer
from mmvisattn.models.backbones.defocus_retnet import Retention
from mmvisattn.models.backbones.defocus_vit import Attention
from mmvisattn.models.layers import BandpassFilter
from mmvisattn.models.layers.hierarchical_attention import HierarchicalBlock
from mmvisattn.ops import inverted_bottleneck
from mmvisattn.ops.causal_conv import CausalDepthwiseConv1d
from mmvisattn.ops.depthwise_conv import DepthwiseConv2d, depthwise_conv2d
from mmvisattn.ops.retention import CHUNK
from mmvisattn.ops.selective_scan import unavailable_reason

import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d

from tools.analysis import get_flops as tool

from .utils import ARCH, ROOT

MAMBA = """
default_scope = 'mmdet'
model = dict(backbone=dict(
    type='mmvisattn.DefocusMamba',
    arch=dict(embed_dims=16, depth=2, d_inner=32, d_state=4, dt_rank=3, group_norm_size=16),
    token_order='raster',
    scan_backend='{backend}',
))
"""


@pytest.fixture(params=['meta', 'cpu'])
def device(request):
    """Where tensors are made: what is counted must not depend on it."""
    with torch.device(request.param), torch.no_grad():
        yield request.param


def count(network: nn.Module, *shape: int) -> tuple[int, int]:
    """FLOPs and activations."""
    x = torch.randn(shape)
    with tool.CostCounter(network.eval()) as counter:
        network(x)
    return counter.flops[''], counter.activations['']


def fcvit_block(n: int, dim: int, mlp_ratio: int) -> tuple[int, int]:
    """By hand, for a map of n positions."""
    inner, hidden = 16, dim * mlp_ratio
    context = 2 * dim * (dim // 4) + 2 * (dim // 8) * dim + 4 * dim * n
    token_mixer = 2 * (context + 2 * 11**2 * dim * n + 2 * 2 * dim * inner * n)
    channel_mixer = 2 * 2 * dim * hidden * n + 2 * 3**2 * hidden * n
    activations = 2 * (dim // 4 + dim + (dim + inner + dim) * n) + (2 * hidden + dim) * n
    return token_mixer + channel_mixer, activations


def mamba_mixer(tokens: int, dim: int, d_inner: int, d_state: int, dt_rank: int) -> tuple[int, int]:
    """By hand."""
    projected = 2 * d_inner, dt_rank + 2 * d_state, d_inner, dim
    products = dim * projected[0] + d_inner * projected[1] + dt_rank * projected[2] + d_inner * projected[3]
    scan = 7 * d_inner * d_state + d_inner
    conv = 2 * 4 * d_inner
    return tokens * (2 * products + conv + scan), tokens * (sum(projected) + d_inner)


def retention(tokens: int, dim: int, num_heads: int) -> tuple[int, int]:
    """By hand: pairs inside chunks, and the state that each chunk adds to and reads."""
    chunks = -(-tokens // CHUNK)
    pairs = 2 * 2 * CHUNK**2 * dim
    state = 2 * 2 * CHUNK * dim * (dim // num_heads)
    return 2 * tokens * 5 * dim**2 + chunks * (pairs + state), tokens * 5 * dim


def causal_attention(tokens: int, dim: int) -> tuple[int, int]:
    """By hand: each query sees the keys up to its own."""
    pairs = sum(range(1, tokens + 1))
    return 2 * tokens * 4 * dim**2 + 2 * 2 * pairs * dim, tokens * 4 * dim


def test_standard_layers(device):
    assert count(nn.Linear(12, 20), 2, 7, 12) == (2 * 2 * 7 * 12 * 20, 2 * 7 * 20)
    grouped = nn.Conv2d(6, 10, 3, stride=2, padding=1, groups=2)
    assert count(grouped, 2, 6, 9, 11) == (2 * 2 * 10 * 5 * 6 * 3 * 3**2, 2 * 10 * 5 * 6)
    assert count(DepthwiseConv2d(8, 11), 1, 8, 13, 14) == (2 * 8 * 13 * 14 * 11**2, 8 * 13 * 14)
    assert count(nn.ConvTranspose2d(4, 6, 2, 2), 1, 4, 5, 7) == (2 * 5 * 7 * 4 * 6 * 2**2, 6 * 10 * 14)
    assert count(CausalDepthwiseConv1d(8, 4), 2, 9, 8) == (2 * 2 * 9 * 8 * 4, 2 * 9 * 8)


def test_depthwise_operator(device):
    class Depthwise(nn.Module):
        def forward(self, x):
            return depthwise_conv2d(x, torch.randn(8, 1, 7, 6), padding=2, backend='torch')

    assert count(Depthwise(), 2, 8, 9, 10) == (2 * 2 * 8 * 7 * 9 * 7 * 6, 2 * 8 * 7 * 9)


def test_multi_head_attention(device):
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    assert count(SelfAttention(), 2, 6, 16) == (2 * (2 * 6 * 4 * 16**2 + 2 * 2 * 6**2 * 16), 2 * 4 * 6 * 16)


def test_deformable_convolution(device):
    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = DeformConv2d(4, 6, 3, padding=1)

        def forward(self, x):
            return self.conv(x, x.new_zeros(x.shape[0], 18, *x.shape[2:]))

    assert count(Deformable(), 2, 4, 5, 7)[0] == 2 * 2 * 6 * 5 * 7 * 4 * 3**2


def test_fcvit_block(device):
    flops, activations = fcvit_block(9 * 10, 16, 2)
    assert count(fcvit.Block(16, 2), 1, 16, 9, 10) == (flops, activations)
    assert count(fcvit.Block(16, 2), 3, 16, 9, 10) == (3 * flops, 3 * activations)


def test_mamba_mixer(device):
    mixer = Mixer(16, 32, 4, 3, group_norm_size=16, scan_backend='torch')
    assert count(mixer, 2, 10, 16) == mamba_mixer(2 * 10, 16, 32, 4, 3)


def test_retention():
    with torch.no_grad():
        assert count(Retention(16, 2, BandpassFilter(2, 8)), 1, 300, 16) == retention(300, 16, 2)


def test_causal_attention(device):
    assert count(Attention(16, 2, BandpassFilter(2, 8)), 1, 600, 16) == causal_attention(600, 16)


@pytest.mark.parametrize('decay', [False, True])
def test_attention_to_all(decay, device):
    attention = Attention(16, 2, BandpassFilter(2, 8, decay=decay), causal=False)
    assert count(attention, 2, 300, 16) == (2 * (2 * 300 * 4 * 16**2 + 2 * 2 * 300**2 * 16), 2 * 300 * 4 * 16)


@pytest.mark.parametrize('ratio', [0.25, 0.5, 1.0])
def test_selected_attention(ratio, device):
    dim, low, high = 24, 16, int(ratio * 4) * 16
    block = HierarchicalBlock(dim, 3, mlp_ratio=2).eval()
    with tool.CostCounter(block) as counter:
        block.forward_both(torch.randn(1, low + high, dim), low)
    tokens = low + high
    per_token = 3 * dim + dim + 2 * 2 * dim  # q, k, v; the projection; the MLP
    assert counter.flops[''] == 2 * tokens * per_token * dim + 2 * 2 * tokens**2 * dim
    assert counter.activations[''] == tokens * (3 * dim + dim + 2 * dim + dim)


@pytest.mark.parametrize('backend', ['auto', 'torch', 'cpu'])
def test_scan_counts_the_same_whatever_computes_it(backend, device, tmp_path):
    if backend == 'cpu' and unavailable_reason('cpu'):
        pytest.skip(unavailable_reason('cpu'))
    config = tmp_path / 'mamba.py'
    config.write_text(MAMBA.format(backend=backend))
    cost = tool._count_on(torch.device(device), str(config), (64, 48), 'backbone')
    tokens = 4 * 3
    flops, activations = mamba_mixer(tokens, 16, 32, 4, 3)
    stem = tokens * 16
    assert cost.flops[''] == 2 * flops + 2 * 3 * 16**2 * stem
    assert cost.activations[''] == 2 * activations + stem
    assert cost.flops['blocks'] == 2 * cost.flops['blocks.1.mixer'] == 2 * flops


def test_pieces_count_as_a_whole(device, monkeypatch):
    """At inference on a CPU FCViT computes large maps in pieces."""
    monkeypatch.setattr(inverted_bottleneck, 'MAX_HIDDEN_BYTES', 2**10)
    size = torch.Size((96, 64))
    cost = tool._count_on(torch.device(device), 'FCViT:tiny,out_indices=0', size, 'backbone')
    flops, activations = fcvit_block(24 * 16, 32, 8)
    assert cost.flops['network.0'] == 3 * flops and cost.activations['network.0'] == 3 * activations


@pytest.mark.parametrize(
    ('name', 'gmacs'),
    [
        ('resnet50', 4.11),
        ('swin_tiny_patch4_window7_224', 4.51),
        ('convnext_tiny', 4.47),
        ('vit_small_patch16_224', 4.61),
    ],
)
def test_published_figures(name, gmacs):
    cost = tool.count(f'timm:{name}', (224, 224))
    assert not cost.measured
    assert cost.flops[''] == pytest.approx(2e9 * gmacs, rel=0.01)


def test_tables(tmp_path, capsys):
    config = tmp_path / 'retinanet.py'
    config.write_text(
        "_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'\n"
        "default_scope = 'mmdet'\n"
        f"model = dict(backbone=dict(_delete_=True, type='mmvisattn.FCViT', arch={ARCH}),\n"
        '    neck=dict(in_channels=[16, 16, 32, 32], out_channels=16),\n'
        '    bbox_head=dict(in_channels=16, feat_channels=16))\n'
    )
    tool.main([str(config), '--sizes', '128x128', '128x256'])
    rows = re.findall(r'^\| (\w+) \| [\d.]+ \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|', capsys.readouterr().out, re.M)
    assert [row[0] for row in rows] == ['all', 'backbone', 'neck', 'bbox_head']
    small, large = ([float(row[i]) for row in rows] for i in (1, 2))
    assert small[0] == pytest.approx(sum(small[1:]), abs=2e-3)
    assert large == pytest.approx([2 * x for x in small], rel=0.03)
    tool.main([str(config), '--part', 'neck', '--depth', '0', '--sizes', '128x128'])
    (neck,) = re.findall(r'^\| all \| [\d.]+ \| ([\d.]+)', capsys.readouterr().out, re.M)
    assert float(neck) == pytest.approx(small[1] + small[2], abs=2e-3)


def test_second_stage_is_counted_for_real():
    cost = tool.count(str(ROOT / 'configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py'), (64, 64))
    assert cost.measured
    backbone = tool.count(str(ROOT / 'configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py'), (64, 64), 'backbone')
    assert not backbone.measured
    assert cost.flops['backbone'] == backbone.flops['']
    assert cost.activations['backbone'] == backbone.activations['']
    assert cost.flops['roi_head.mask_head'] > 0


def test_what_is_wrong_for_another_reason_than_missing_values_is_told(monkeypatch):
    devices = []

    def fail(device, *args):
        devices.append(device.type)
        raise TypeError('a bug')

    monkeypatch.setattr(tool, '_count_on', fail)
    with pytest.raises(TypeError, match='a bug'):
        tool.count('FCViT:tiny', (64, 64))
    assert devices == ['meta']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['timm:resnet5'], ["has no 'resnet5'", 'did you mean']),
        (['FCViT:b12', '--sizes', '512'], ["'512' is not of the form HxW"]),
        (['mmdet::retinanet/retinanet_r50_fpn_1x_coc.py'], ["did you mean 'retinanet_r50_fpn_1x_coco.py'"]),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        tool.main(arguments)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'error: ' in line and all(word in line for word in words), line
