import re

import pytest
import torch

from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT

from .conftest import load_tool

SMALL = dict(embed_dims=24, depth=4, num_heads=3, mlp_ratio=2)


def test_flex_cost_prints_flops_time_and_the_share_of_selection(capsys):
    tool = load_tool('analysis/flex_cost')
    tool.main(['--arch', 'tiny', '--sizes', '128x128', '--ratios', '0.25', '1.0', '--rounds', '1', '--device', 'cpu'])
    out = capsys.readouterr().out
    gflops = [float(row) for row in re.findall(r'^\| [^|]+ \| ([\d.]+) \|', out, re.MULTILINE)]
    low, quarter, everything, full = gflops
    assert low < quarter < full < everything
    shares = re.findall(r'selection adds ([\d.]+)% to the FLOPs', out)
    assert len(shares) == 2 and all(0 < float(share) < 10 for share in shares)


def test_flex_cost_counts_what_the_formula_says():
    tool = load_tool('analysis/flex_cost')
    with torch.device('meta'), torch.no_grad():
        network, x = tool.PlainViT('tiny', 2), torch.randn(1, 3, 256, 256)
        counted = tool.flops(lambda: network(x))
    dim, tokens = 192, 64
    layer = 2 * 12 * tokens * dim**2 + 2 * 2 * tokens**2 * dim
    assert counted == 12 * layer + 2 * tokens * 3 * 16**2 * dim


def test_flex_relevance_compares_each_layer_that_selects():
    tool = load_tool('analysis/flex_relevance')
    torch.manual_seed(0)
    network = FlexViT(SMALL, patch_size=8, pretrain_size=64, num_plain_layers=1).eval()
    recorder = tool.Recorder(network)
    with torch.no_grad():
        network(torch.randn(2, 3, 96, 96))
    assert list(recorder.figures) == [f'FlexViT layer {i}' for i in (1, 2, 3)]
    for figures in recorder.figures.values():
        assert len(figures) == 2
        for correlation, shared, entropy in figures:
            # the map is so small that no queries are averaged: the estimate is exact
            assert (correlation, shared) == pytest.approx((1, 1)) and 0.9 < entropy < 1.0001
    with pytest.raises(UserError, match='no FlexAttention'):
        tool.Recorder(torch.nn.Conv2d(3, 3, 1))


def test_rank_correlation():
    tool = load_tool('analysis/flex_relevance')
    a = torch.tensor([[1.0, 5.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    b = torch.tensor([[0.1, 0.3, 0.2, 0.4], [4.0, 3.0, 2.0, 1.0]])
    torch.testing.assert_close(tool.rank_correlation(a, b), torch.tensor([1.0, -1.0]).double())
