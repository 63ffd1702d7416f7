from mmvisattn.errors import UserError
from mmvisattn.models.layers.relevance import received_attention
from mmvisattn.models.layers.token_selection import (
    CellGrid,
    Selection,
    TokenSelector,
    gather_cells,
    min_max,
    pool_to_cells,
    upsample_cells,
    write_cells,
)

import numpy as np
import pytest
import torch

from tests.golden import load

SHAPES = ['square', 'landscape', 'portrait', 'nearsquare', 'panorama']


def inside_letterbox(size: tuple[int, int], grid: int) -> torch.Tensor:
    """True for the tokens that show the picture, where an image of (width, height) was padded to a square."""
    width, height = size
    margin = int(abs(width - height) // 2 / max(width, height) * grid)
    inside = torch.ones(grid, grid, dtype=torch.bool)
    if margin:
        rows = inside if width > height else inside.T
        rows[:margin] = rows[-margin:] = False
    return inside


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
        return selector(relevance.masked_fill(~inside, 0), (9, 9)).mask((9, 9))  # the least relevance is theirs

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


# Choosing cells.


@pytest.mark.parametrize('mode', ['topk', 'threshold', 'random'])
def test_constant_relevance_is_harmless(mode):
    selection = TokenSelector(mode)(torch.full((2, 8, 8), 0.3), 2)
    assert torch.equal(min_max(torch.full((2, 8, 8), 0.3)), torch.zeros(2, 8, 8))
    if mode == 'threshold':
        assert selection.index.shape == (2, 0) and not selection.mask((4, 4)).any()
    else:
        assert selection.mask((4, 4)).sum((1, 2)).tolist() == [4, 4]


@pytest.mark.parametrize(('ratio', 'count'), [(0.0, 0), (0.001, 1), (0.1, 2), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_topk_takes_the_best_cells(ratio, count):
    relevance = torch.rand(3, 8, 7)
    selection = TokenSelector('topk', ratio)(relevance, 2)
    assert selection.index.shape == (3, count) and selection.keep is None
    cells = pool_to_cells(relevance, 2).flatten(1)
    assert cells.shape == (3, 16)
    torch.testing.assert_close(cells.gather(1, selection.index).sort(1).values, cells.sort(1).values[:, 16 - count :])


def test_threshold_takes_what_each_image_asks_for():
    relevance = torch.zeros(3, 4, 6)
    relevance[0, 0, 0] = relevance[1, 3, 5] = 1.0
    relevance[1, 1, 2] = 48.5 / 255
    relevance[1, 0, 0] = 48.0 / 255
    relevance[2] = 0.7
    selection = TokenSelector('threshold', threshold=48)(relevance, 2)
    assert selection.keep.sum(1).tolist() == [1, 2, 0]
    assert all(len(set(row)) == 2 for row in selection.index.tolist())
    expected = torch.zeros(3, 2, 3, dtype=torch.bool)
    expected[0, 0, 0] = expected[1, 1, 2] = expected[1, 0, 1] = True
    assert torch.equal(selection.mask((2, 3)), expected)


@pytest.mark.parametrize('mode', ['topk', 'threshold', 'random'])
@pytest.mark.parametrize('ratio', [0.25, 1.0])
def test_nothing_is_chosen_in_padding(mode, ratio):
    relevance = torch.rand(3, 8, 12)
    sizes = [(8, 12), (3, 12), (2, 1)]
    real, real_cells = torch.zeros(3, 8, 12, dtype=torch.bool), torch.zeros(3, 4, 6, dtype=torch.bool)
    for i, (rows, columns) in enumerate(sizes):
        real[i, :rows, :columns] = real_cells[i, : -(-rows // 2), : -(-columns // 2)] = True
    relevance[~real] = 5.0
    for _ in range(20):  # by chance as well
        chosen = TokenSelector(mode, ratio, threshold=0)(relevance, 2, real, real_cells).mask((4, 6))
        assert chosen.any() and not (chosen & ~real_cells).any()
        if mode != 'threshold':
            assert chosen.sum((1, 2)).tolist() == ([6, 3, 1] if ratio < 1 else [24, 12, 1])


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_an_image_with_padding_is_given_what_it_is_given_alone(mode):
    relevance = torch.rand(2, 8, 8) + 0.5
    real, real_cells = torch.ones(2, 8, 8, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)
    real[1, 4:] = real_cells[1, 2:] = False
    selector = TokenSelector(mode, 0.25, 200)
    alone = selector(relevance[1:, :4], 2).mask((2, 4))
    assert 0 < alone.sum() < 8
    assert torch.equal(selector(relevance, 2, real, real_cells).mask((4, 4))[1:, :2], alone)


@pytest.mark.parametrize('ratio', [0.1, 0.15, 0.3, 0.5, 0.7, 1.0, 0.0, 1e-3])
def test_share_of_a_padded_image_is_rounded_as_that_of_a_whole_one(ratio):
    selector = TokenSelector('topk', ratio)
    counts = selector.count(torch.arange(1, 400).double()).tolist()
    assert counts == [selector.count(n) for n in range(1, 400)]


def test_random_selection_differs_from_call_to_call():
    selector = TokenSelector('random', 0.5)
    masks = [selector(torch.rand(1, 8, 8), 1).mask((8, 8)) for _ in range(2)]
    assert not torch.equal(*masks) and all(mask.sum() == 32 for mask in masks)


# Cells of a map.


@pytest.mark.parametrize(('size', 'cell'), [((8, 12), (4, 4)), ((7, 9), (4, 4)), ((6, 4), (3, 2)), ((3, 3), (4, 4))])
def test_split_and_join(size, cell):
    grid = CellGrid(size, cell)
    maps = torch.randn(2, *size, 5)
    cells = grid.split(maps)
    assert cells.shape == (2, grid.shape[0] * grid.shape[1], cell[0] * cell[1], 5)
    assert torch.equal(grid.join(cells), maps)
    torch.testing.assert_close(cells[:, 0, 1], maps[:, 0, 1])
    real = grid.real_tokens(maps.device)
    if size == (8, 12) or size == (6, 4):
        assert real is None
    else:
        assert real.sum() == size[0] * size[1]
        assert not cells[:, ~real].any()


def test_gathered_cells_lie_where_nearest_upsampling_puts_them():
    grid = CellGrid((12, 8), (4, 4))
    selection = TokenSelector('topk', 0.5)(torch.rand(2, 6, 4), 2)
    maps = torch.randn(2, 12, 8, 3)
    chosen = upsample_cells(selection.mask(grid.shape), (12, 8))
    gathered = gather_cells(grid.split(maps), selection.index)
    for image in range(2):
        expected = maps[image][chosen[image]]
        assert {tuple(t) for t in gathered[image].tolist()} == {tuple(t) for t in expected.tolist()}


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_writing_back_leaves_the_rest_untouched_to_the_bit(mode):
    grid = CellGrid((12, 8), (2, 2))
    relevance = torch.rand(3, 6, 4)
    relevance[0] = relevance[0] ** 8  # fewer above the threshold than in the others
    selection = TokenSelector(mode, 0.3, 200)(relevance, 1)
    maps = torch.randn(3, 12, 8, 5)
    cells = grid.split(maps)
    tokens = gather_cells(cells, selection.index)
    assert torch.equal(write_cells(cells, selection, tokens), cells)
    written = grid.join(write_cells(cells, selection, tokens + 1))
    chosen = upsample_cells(selection.mask(grid.shape), (12, 8))
    assert torch.equal(written[~chosen], maps[~chosen])
    assert torch.equal(written[chosen], maps[chosen] + 1)
    assert 0 < chosen.sum() < chosen.numel()


def test_gradients_of_gathering_and_writing_back():
    cells = torch.randn(2, 5, 2, 3, dtype=torch.double, requires_grad=True)
    index = torch.tensor([[4, 1], [0, 2]])
    for keep in (None, torch.tensor([[True, False], [True, True]])):
        selection = Selection(index, keep)
        tokens = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
        torch.autograd.gradcheck(lambda c, t, s=selection: write_cells(c, s, t), (cells, tokens))
    torch.autograd.gradcheck(lambda c: gather_cells(c, index), (cells,))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(mode='treshold'), r"'treshold' \(did you mean 'threshold'\?\)"),
        (dict(ratio=1.5), '`select_ratio` is 1.5'),
        (dict(ratio=-0.1), 'from 0'),
        (dict(threshold=300), '`select_threshold` is 300'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        TokenSelector(**kwargs)
