from mmvisattn.models.layers.cells import Tiling, add_tokens, gather_tokens
from mmvisattn.models.layers.selection import Selection, TokenSelector

import pytest
import torch

from tests.models.layers.flex_utils import upsample_cells


@pytest.mark.parametrize(('size', 'cell'), [((12, 8), (4, 4)), ((7, 9), (4, 4)), ((6, 4), (3, 2)), ((3, 3), (4, 4))])
def test_tokens_of_cells_lie_where_nearest_upsampling_puts_them(size, cell):
    tiling = Tiling(size, cell)
    rows, columns = tiling.shape
    selection = TokenSelector('topk', 0.5).eval()(torch.rand(2, rows, columns))
    index, keep = tiling.locate(selection)
    assert index.shape == (2, selection.indices.shape[1] * cell[0] * cell[1])
    assert (keep is None) == (size in [(12, 8), (6, 4)])
    chosen = upsample_cells(selection.mask(tiling.shape), (rows * cell[0], columns * cell[1]))
    for image in range(2):
        here = index[image] if keep is None else index[image][keep[image]]
        assert len(here.unique()) == len(here)
        assert torch.equal(here.sort().values, chosen[image, : size[0], : size[1]].flatten().nonzero().flatten())


def test_entries_that_fill_up_do_not_count():
    selection = Selection(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[True, True], [True, False]]))
    index, keep = Tiling((2, 4), (2, 2)).locate(selection)
    assert index.tolist() == [[2, 3, 6, 7, 0, 1, 4, 5]] * 2  # cell by cell, each in raster order
    assert keep.tolist() == [[True] * 8, [True] * 4 + [False] * 4]


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_adding_leaves_the_rest_untouched_to_the_bit(mode):
    tiling = Tiling((11, 8), (2, 2))
    logits = torch.randn(3, 6, 4)
    logits[0] *= 4  # fewer above the threshold than in the others
    selection = TokenSelector(mode, 0.3, 60).eval()(logits)
    tokens = torch.randn(3, 88, 5)
    index, keep = tiling.locate(selection)
    out = add_tokens(tokens, index, torch.ones(*index.shape, 5), keep)
    chosen = upsample_cells(selection.mask(tiling.shape), (12, 8))[:, :11].flatten(1)
    assert torch.equal(out[~chosen], tokens[~chosen])
    assert torch.equal(out[chosen], tokens[chosen] + 1)
    assert 0 < chosen.sum() < chosen.numel()


def test_gradients_of_gathering_and_adding():
    tokens = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    new = torch.randn(2, 2, 3, dtype=torch.double, requires_grad=True)
    index = torch.tensor([[4, 1], [0, 2]])
    assert torch.equal(gather_tokens(tokens, index)[1, 1], tokens[1, 2])
    torch.autograd.gradcheck(lambda t: gather_tokens(t, index), (tokens,))
    for keep in (None, torch.tensor([[True, False], [True, True]])):
        torch.autograd.gradcheck(lambda t, n, k=keep: add_tokens(t, index, n, k), (tokens, new))
