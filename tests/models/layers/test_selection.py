from mmvisattn.errors import UserError
from mmvisattn.models.layers.hierarchical_attention import HierarchicalBlock, attention_map
from mmvisattn.models.layers.selection import (
    ESTIMATES,
    KEY_BLOCKS,
    Relevance,
    TokenSelector,
    attention_contrast,
    estimate_attention_contrast,
    estimate_received_attention,
    min_max,
    pool_to_cells,
    received_attention,
)

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.golden import load
from tests.models.layers.flex_utils import choose_among_9x9, inside_letterbox, upsample_cells

SHAPES = ['square', 'landscape', 'portrait', 'nearsquare', 'panorama']


# Against the authors' implementation.


@pytest.mark.parametrize('threshold', [48, 64])
@pytest.mark.parametrize('shape', SHAPES)
def test_masks_equal_the_golden_ones_to_the_bit(shape, threshold):
    golden = load('flex_select_24x24_hd72')
    attention = torch.from_numpy(golden['attn_rows'])[..., int(golden['image_begin']) : int(golden['image_end'])]
    rows = golden['attn_row_index'].tolist()
    size = golden[f'ori_size_{shape}'].tolist()
    inside = inside_letterbox(size, 24)
    assert (~inside).sum() == 2 * 24 * golden[f'margin_patches_{shape}']
    selector = TokenSelector('threshold', threshold=threshold)

    def masks(queries: list[int]) -> torch.Tensor:
        """One selection for each query, as the language model has it: queries take the place of the batch."""
        chosen = attention[:, [rows.index(q) for q in queries]].transpose(0, 1).unsqueeze(2)  # (Q, heads, 1, 576)
        relevance = received_attention(chosen).unflatten(1, (24, 24))
        return choose_among_9x9(selector, relevance, inside)

    for count in (1, 2, 3):
        ours = upsample_cells(masks(golden[f'train_q{count}_rows'].tolist()), (72, 72)).flatten(1)
        expected = np.unpackbits(golden[f'train_q{count}_{shape}_thr{threshold}'], axis=1).astype(bool)
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(ours, expected)
    last = masks([588])
    expected = np.unpackbits(golden[f'infer_{shape}_thr{threshold}'], axis=1).astype(bool)
    np.testing.assert_array_equal(upsample_cells(last, (72, 72)).flatten(1), expected)
    if (shape, threshold) == ('square', 48):
        np.testing.assert_array_equal(last, golden['infer_square_thr48_9x9'].astype(bool))


# Relevance.


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
    attention = attention_map(q, k)
    estimate, exact = estimate_received_attention(q, k, grid), received_attention(attention)
    assert all(rank_correlation(*pair) > 0.9 for pair in zip(estimate, exact))


@pytest.mark.parametrize(('grid', 'block'), [((5, 7), (1, 1)), ((16, 24), (2, 3)), ((32, 64), (4, 4))])
def test_estimate_is_exact_where_the_queries_of_a_block_ask_the_same(grid, block):
    blocks = (grid[0] // block[0], grid[1] // block[1])
    q = torch.randn(2, 3, *blocks, 8, dtype=torch.double).repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)
    k = torch.randn(2, 3, grid[0] * grid[1], 8, dtype=torch.double)
    attention = attention_map(q.flatten(2, 3), k)
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
    attention = attention_map(q, k)
    estimate, exact = estimate_attention_contrast(q, k, grid), attention_contrast(attention.mT, grid)
    assert all(rank_correlation(*pair) > 0.6 for pair in zip(estimate, exact))


@pytest.mark.parametrize('grid', [(KEY_BLOCKS, KEY_BLOCKS), (3, 5)])
def test_contrast_is_exact_where_a_block_is_one_key(grid):
    q, k = tokens_like_features(2, 4, grid, 16), tokens_like_features(2, 4, grid, 16, seed=1)
    attention = attention_map(q, k)
    exact = attention_contrast(attention.mT, grid)
    torch.testing.assert_close(estimate_attention_contrast(q, k, grid), exact)


def test_padding_is_no_neighbour():
    attention = torch.rand(2, 3, 5, 24, dtype=torch.double)
    valid = torch.zeros(4, 6, dtype=torch.bool)
    valid[:3, :4] = True
    alone = attention.unflatten(3, (4, 6))[..., :3, :4].flatten(3)
    padded = attention_contrast(attention, (4, 6), valid)[:, valid.flatten()]
    torch.testing.assert_close(padded, attention_contrast(alone, (3, 4)))
    each = attention_contrast(attention, (4, 6), torch.stack([valid, torch.ones_like(valid)]))
    torch.testing.assert_close(each[:1, valid.flatten()], padded[:1])
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
    for relevance in (None, Relevance(kind)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _, _, q, k = block(x)
            if relevance is not None:
                relevance(q, k, (32, 32))
        flops.append(counter.get_total_flops())
    assert 0 < flops[1] - flops[0] < 0.1 * flops[0]


@pytest.mark.parametrize('kind', ESTIMATES)
def test_relevance_passes_no_gradient_and_is_in_float32(kind):
    q = torch.randn(1, 2, 16, 4, requires_grad=True)
    relevance = Relevance(kind)(q.bfloat16(), q.bfloat16(), (4, 4))
    assert relevance.shape == (1, 4, 4)
    assert not relevance.requires_grad and relevance.dtype == torch.float32
    attention = attention_map(q, q)
    assert attention.requires_grad
    assert not received_attention(attention).requires_grad
    assert not attention_contrast(attention, (4, 4)).requires_grad


# Choosing cells.


@pytest.mark.parametrize('mode', ['topk', 'threshold', 'random'])
def test_constant_relevance_is_harmless(mode):
    selection = TokenSelector(mode, cell_size=2)(torch.full((2, 8, 8), 0.3))
    assert torch.equal(min_max(torch.full((2, 8, 8), 0.3)), torch.zeros(2, 8, 8))
    if mode == 'threshold':
        assert selection.indices.shape == (2, 0) and not selection.mask((4, 4)).any()
    else:
        assert selection.mask((4, 4)).sum((1, 2)).tolist() == [4, 4]


@pytest.mark.parametrize(('ratio', 'count'), [(0.0, 0), (0.001, 1), (0.1, 2), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_topk_takes_the_best_cells(ratio, count):
    relevance = torch.rand(3, 8, 7)
    selection = TokenSelector('topk', ratio, cell_size=2)(relevance)
    assert selection.indices.shape == (3, count) and selection.keep is None
    cells = pool_to_cells(relevance, 2).flatten(1)
    assert cells.shape == (3, 16)
    torch.testing.assert_close(cells.gather(1, selection.indices).sort(1).values, cells.sort(1).values[:, 16 - count :])


def test_threshold_takes_what_each_image_asks_for():
    relevance = torch.zeros(3, 4, 6)
    relevance[0, 0, 0] = relevance[1, 3, 5] = 1.0
    relevance[1, 1, 2] = 48.5 / 255
    relevance[1, 0, 0] = 48.0 / 255
    relevance[2] = 0.7
    selection = TokenSelector('threshold', threshold=48, cell_size=2)(relevance)
    assert selection.keep.sum(1).tolist() == [1, 2, 0]
    assert all(len(set(row)) == 2 for row in selection.indices.tolist())
    expected = torch.zeros(3, 2, 3, dtype=torch.bool)
    expected[0, 0, 0] = expected[1, 1, 2] = expected[1, 0, 1] = True
    assert torch.equal(selection.mask((2, 3)), expected)


@pytest.mark.parametrize('mode', ['topk', 'threshold', 'random'])
@pytest.mark.parametrize('ratio', [0.25, 1.0])
def test_nothing_is_chosen_in_padding(mode, ratio):
    relevance = torch.rand(3, 8, 12)
    sizes = [(8, 12), (3, 12), (2, 1)]
    valid, valid_cells = torch.zeros(3, 8, 12, dtype=torch.bool), torch.zeros(3, 4, 6, dtype=torch.bool)
    for i, (rows, columns) in enumerate(sizes):
        valid[i, :rows, :columns] = valid_cells[i, : -(-rows // 2), : -(-columns // 2)] = True
    relevance[~valid] = 5.0
    for _ in range(20):  # by chance as well
        chosen = TokenSelector(mode, ratio, threshold=0, cell_size=2)(relevance, valid, valid_cells).mask((4, 6))
        assert chosen.any() and not (chosen & ~valid_cells).any()
        if mode != 'threshold':
            assert chosen.sum((1, 2)).tolist() == ([6, 3, 1] if ratio < 1 else [24, 12, 1])


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_an_image_with_padding_is_given_what_it_is_given_alone(mode):
    torch.manual_seed(0)
    relevance = torch.rand(2, 8, 8) + 0.5
    valid, valid_cells = torch.ones(2, 8, 8, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 4:] = valid_cells[1, 2:] = False
    selector = TokenSelector(mode, 0.25, 200, cell_size=2)
    alone = selector(relevance[1:, :4]).mask((2, 4))
    assert 0 < alone.sum() < 8
    assert torch.equal(selector(relevance, valid, valid_cells).mask((4, 4))[1:, :2], alone)


@pytest.mark.parametrize('ratio', [0.1, 0.15, 0.3, 0.5, 0.7, 1.0, 0.0, 1e-3])
def test_share_of_a_padded_image_is_rounded_as_that_of_a_whole_one(ratio):
    selector = TokenSelector('topk', ratio)
    counts = selector.count(torch.arange(1, 400).double()).tolist()
    assert counts == [selector.count(n) for n in range(1, 400)]


def test_random_selection_differs_from_call_to_call():
    selector = TokenSelector('random', 0.5)
    masks = [selector(torch.rand(1, 8, 8)).mask((8, 8)) for _ in range(2)]
    assert not torch.equal(*masks) and all(mask.sum() == 32 for mask in masks)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(mode='treshold'), r"'treshold' \(did you mean 'threshold'\?\)"),
        (dict(ratio=1.5), '`select_ratio` is 1.5'),
        (dict(ratio=-0.1), 'from 0'),
        (dict(threshold=300), '`select_threshold` is 300'),
        (dict(cell_size=0), '`cell_size` is 0'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        TokenSelector(**kwargs)
