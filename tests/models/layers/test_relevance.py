from functools import partial

from mmvisattn.models.layers.hierarchical_attention import HierarchicalBlock, hierarchical_attention
from mmvisattn.models.layers.relevance import (
    ESTIMATES,
    KEY_BLOCKS,
    attention_contrast,
    estimate_attention_contrast,
    estimate_received_attention,
    received_attention,
)

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


def tokens_like_features(batch: int, heads: int, grid: tuple[int, int], dim: int, seed: int = 0) -> torch.Tensor:
    """Random fields as smooth as features are from token to token, (batch, heads, N, dim)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch * heads, dim, *grid, generator=generator, dtype=torch.double)
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)
    return (smooth * 3 + noise * 0.3).flatten(2).transpose(1, 2).unflatten(0, (batch, heads))


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's rank correlation."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return torch.corrcoef(ranks)[0, 1].item()


@pytest.mark.parametrize('grid', [(12, 16), (9, 25), (33, 20)])
def test_estimate_ranks_as_the_exact_received_attention(grid):
    q, k = tokens_like_features(2, 4, grid, 16), tokens_like_features(2, 4, grid, 16, seed=1)
    _, attention = hierarchical_attention(q, k, k, need_map=True)
    estimate, exact = estimate_received_attention(q, k, grid), received_attention(attention)
    assert all(rank_correlation(*pair) > 0.9 for pair in zip(estimate, exact))


@pytest.mark.parametrize(('grid', 'block'), [((5, 7), (1, 1)), ((16, 24), (2, 3)), ((32, 64), (4, 4))])
def test_estimate_is_exact_where_the_queries_of_a_block_ask_the_same(grid, block):
    blocks = (grid[0] // block[0], grid[1] // block[1])
    q = torch.randn(2, 3, *blocks, 8, dtype=torch.double).repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)
    k = torch.randn(2, 3, grid[0] * grid[1], 8, dtype=torch.double)
    _, attention = hierarchical_attention(q.flatten(2, 3), k, k, need_map=True)
    estimate = estimate_received_attention(q.flatten(2, 3), k, grid)
    torch.testing.assert_close(estimate * block[0] * block[1], received_attention(attention))


def test_contrast_by_its_definition():
    attention, grid = torch.rand(2, 3, 5, 12, dtype=torch.double), (3, 4)
    out = attention_contrast(attention, grid).unflatten(1, grid)
    for row in range(3):
        for column in range(4):
            square = attention.unflatten(3, grid)[..., max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            here = attention[..., row * 4 + column]
            expected = (here - square.mean((-2, -1))).abs().sum((1, 2))
            torch.testing.assert_close(out[:, row, column], expected)


def test_contrast_points_at_what_differs_from_its_surroundings():
    q = torch.randn(2, 3, 1, 8).repeat(1, 1, 20 * 15, 1)
    q[:, :, 7 * 15 + 4] += 1.0
    k = tokens_like_features(2, 3, (20, 15), 8).float()
    contrast = estimate_attention_contrast(q, k, (20, 15)).unflatten(1, (20, 15))
    assert contrast.flatten(1).argmax(1).tolist() == [7 * 15 + 4] * 2
    contrast[:, 6:9, 3:6] = 0
    assert contrast.max() < 1e-6


@pytest.mark.parametrize('grid', [(12, 16), (9, 25), (33, 20)])
def test_contrast_with_blocks_ranks_as_that_of_the_whole_map(grid):
    q, k = tokens_like_features(2, 4, grid, 16), tokens_like_features(2, 4, grid, 16, seed=1)
    _, attention = hierarchical_attention(q, k, k, need_map=True)
    estimate, exact = estimate_attention_contrast(q, k, grid), attention_contrast(attention.mT, grid)
    assert all(rank_correlation(*pair) > 0.6 for pair in zip(estimate, exact))


@pytest.mark.parametrize('grid', [(KEY_BLOCKS, KEY_BLOCKS), (3, 5)])
def test_contrast_is_exact_where_a_block_is_one_key(grid):
    q, k = tokens_like_features(2, 4, grid, 16), tokens_like_features(2, 4, grid, 16, seed=1)
    _, attention = hierarchical_attention(q, k, k, need_map=True)
    exact = attention_contrast(attention.mT, grid)
    torch.testing.assert_close(estimate_attention_contrast(q, k, grid), exact)


def test_padding_is_no_neighbour():
    attention = torch.rand(2, 3, 5, 24, dtype=torch.double)
    real = torch.zeros(4, 6, dtype=torch.bool)
    real[:3, :4] = True
    alone = attention.unflatten(3, (4, 6))[..., :3, :4].flatten(3)
    padded = attention_contrast(attention, (4, 6), real)[:, real.flatten()]
    torch.testing.assert_close(padded, attention_contrast(alone, (3, 4)))
    each = attention_contrast(attention, (4, 6), torch.stack([real, torch.ones_like(real)]))
    torch.testing.assert_close(each[:1, real.flatten()], padded[:1])
    torch.testing.assert_close(each[1:], attention_contrast(attention[1:], (4, 6)))


@pytest.mark.parametrize('kind', ESTIMATES)
def test_constant_tokens_are_equally_relevant(kind):
    x = torch.randn(2, 3, 1, 8).repeat(1, 1, 30, 1)
    relevance = ESTIMATES[kind](x, x, (5, 6))
    torch.testing.assert_close(relevance, relevance[:, :1].expand(-1, 30), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ESTIMATES)
def test_estimate_costs_less_than_a_tenth_of_a_plain_layer(kind):
    block = HierarchicalBlock(96, 3, high_res=False).eval()
    x = torch.randn(1, 32 * 32, 96)
    flops = []
    for estimate in (None, partial(ESTIMATES[kind], grid=(32, 32))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block(x, estimate=estimate)
        flops.append(counter.get_total_flops())
    assert 0 < flops[1] - flops[0] < 0.1 * flops[0]


@pytest.mark.parametrize('kind', ESTIMATES)
def test_relevance_passes_no_gradient_and_is_in_float32(kind):
    q = torch.randn(1, 2, 16, 4, requires_grad=True)
    relevance = ESTIMATES[kind](q.bfloat16(), q.bfloat16(), (4, 4))
    assert not relevance.requires_grad and relevance.dtype == torch.float32
    _, attention = hierarchical_attention(q, q, q, need_map=True)
    assert attention.requires_grad
    assert not received_attention(attention).requires_grad
    assert not attention_contrast(attention, (4, 4)).requires_grad
