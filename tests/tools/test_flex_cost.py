import re

import torch

from .utils import load_tool


def test_flex_cost_prints_flops_time_and_the_share_of_selection(capsys):
    tool = load_tool('analysis/flex_cost')
    tool.main(['--arch', 'tiny', '--sizes', '128x128', '--ratios', '0.25', '1.0', '--rounds', '1', '--device', 'cpu'])
    out = capsys.readouterr().out
    gflops = [float(row) for row in re.findall(r'^\| [^|]+ \| ([\d.]+) \|', out, re.MULTILINE)]
    low, quarter, everything, full = gflops
    assert low < quarter < full < everything
    shares = re.findall(r'^\| 1×3×128×128 \| \d+% \| ([\d.]+)% \| -?[\d.]+% \|$', out, re.MULTILINE)
    assert len(shares) == 2 and all(0 < float(share) < 50 for share in shares)  # of narrow layers


def test_flex_cost_counts_what_the_formula_says():
    tool = load_tool('analysis/flex_cost')
    with torch.device('meta'), torch.no_grad():
        network, x = tool.PlainViT('tiny', 2), torch.randn(1, 3, 256, 256)
        counted = tool.flops(lambda: network(x))
    dim, tokens = 192, 64
    layer = 2 * 12 * tokens * dim**2 + 2 * 2 * tokens**2 * dim
    assert counted == 12 * layer + 2 * tokens * 3 * 16**2 * dim


def test_flex_cost_tells_how_a_number_of_cells_grows(capsys):
    tool = load_tool('analysis/flex_cost')
    tool.main('--arch tiny --cells 2 --sizes 128x128 256x256 --rounds 1 --device cpu --clock cpu'.split())
    out = capsys.readouterr().out
    small, large, fitted, last = map(float, re.search(r'^\| GFLOPs \|(.*)\|$', out, re.M)[1].split('|'))
    assert 0 < small <= large and 0 < fitted == last <= 1.05
    assert re.search(r'^\| ms \|( -?[\d.]+ \|){2}( [\d.–-]+ \|){2}$', out, re.M)
