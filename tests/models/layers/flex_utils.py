"""What tests of FlexAttention share: a plain form of its attention, and the selection of the paper's release."""

from mmvisattn.models.layers.hierarchical_attention import HierarchicalAttention, HierarchicalBlock
from mmvisattn.models.layers.selection import TokenSelector, min_max

import torch
import torch.nn.functional as F
from torch import nn


def inside_letterbox(size: tuple[int, int], grid: int) -> torch.Tensor:
    """True for the tokens that show the picture, where an image of (width, height) was padded to a square."""
    width, height = size
    margin = int(abs(width - height) // 2 / max(width, height) * grid)
    inside = torch.ones(grid, grid, dtype=torch.bool)
    if margin:
        rows = inside if width > height else inside.T
        rows[:margin] = rows[-margin:] = False
    return inside


def upsample_cells(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A boolean map of cells, (B, rows, columns), brought to a finer grid by nearest neighbour: (B, *size)."""
    return F.interpolate(mask[:, None].to(torch.uint8), size, mode='nearest').squeeze(1).bool()


def choose_among_9x9(selector: TokenSelector, relevance: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The cells that the paper's release chooses: 9×9 of them, which overlap where the map is not a multiple.

    Padding has the least relevance.
    """
    maps = min_max(relevance.masked_fill(~inside, 0))
    return selector.choose(F.adaptive_max_pool2d(maps, (9, 9))).mask((9, 9))


def attention_map(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(Q Kᵀ / √d), which fused attention does not give away."""
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    return (logits if mask is None else logits.masked_fill(~mask, float('-inf'))).softmax(-1)


def build(high_res: bool = True, seed: int = 0, **kwargs) -> HierarchicalBlock:
    """A block in float64 whose projections are large enough to make attention sharp, and W' other than W."""
    torch.manual_seed(seed)
    block = HierarchicalBlock(24, 3, 2.0, high_res=high_res, **kwargs).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def tokens(batch: int, length: int, requires_grad: bool = False) -> torch.Tensor:
    return torch.randn(batch, length, 24, dtype=torch.double, requires_grad=requires_grad)


def plainly(attn: HierarchicalAttention, x: torch.Tensor, num_low: int) -> torch.Tensor:
    """Y = softmax(Q [X W_K; S W'_K]ᵀ / √d) [X W_V; S W'_V] of one image, head by head."""
    low, high = x[:num_low], x[num_low:]
    q, k, v = (
        x @ attn.qkv.weight[:24].T + attn.qkv.bias[:24],
        *(low @ attn.qkv.weight[24:].T + attn.qkv.bias[24:]).chunk(2, 1),
    )
    if attn.kv_high is not None:
        k_high, v_high = (high @ attn.kv_high.weight.T + attn.kv_high.bias).chunk(2, 1)
        k, v = torch.cat([k, k_high]), torch.cat([v, v_high])
    heads = zip(q.split(8, 1), k.split(8, 1), v.split(8, 1))
    out = torch.cat([(q @ k.T / 8**0.5).softmax(-1) @ v for q, k, v in heads], 1)
    return out @ attn.proj.weight.T + attn.proj.bias
