from mmvisattn.models.layers.cells import Tiling, attend_and_write_back, gather_cells, write_cells
from mmvisattn.models.layers.selection import Selection, TokenSelector

import pytest
import torch

from tests.models.layers.flex_utils import build, plainly, tokens, upsample_cells

# Cutting a map, taking cells and putting them back.


@pytest.mark.parametrize(('size', 'cell'), [((8, 12), (4, 4)), ((7, 9), (4, 4)), ((6, 4), (3, 2)), ((3, 3), (4, 4))])
def test_split_and_join(size, cell):
    tiling = Tiling(size, cell)
    maps = torch.randn(2, *size, 5)
    cells = tiling.split(maps)
    assert cells.shape == (2, tiling.shape[0] * tiling.shape[1], cell[0] * cell[1], 5)
    assert torch.equal(tiling.join(cells), maps)
    torch.testing.assert_close(cells[:, 0, 1], maps[:, 0, 1])
    valid = tiling.valid_tokens(maps.device)
    if size == (8, 12) or size == (6, 4):
        assert valid is None
    else:
        assert valid.sum() == size[0] * size[1]
        assert not cells[:, ~valid].any()


def test_gathered_cells_lie_where_nearest_upsampling_puts_them():
    tiling = Tiling((12, 8), (4, 4))
    selection = TokenSelector('topk', 0.5, cell_size=2)(torch.rand(2, 6, 4))
    maps = torch.randn(2, 12, 8, 3)
    chosen = upsample_cells(selection.mask(tiling.shape), (12, 8))
    gathered = gather_cells(tiling.split(maps), selection.indices)
    for image in range(2):
        expected = maps[image][chosen[image]]
        assert {tuple(t) for t in gathered[image].tolist()} == {tuple(t) for t in expected.tolist()}


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_writing_back_leaves_the_rest_untouched_to_the_bit(mode):
    tiling = Tiling((12, 8), (2, 2))
    relevance = torch.rand(3, 6, 4)
    relevance[0] = relevance[0] ** 8  # fewer above the threshold than in the others
    selection = TokenSelector(mode, 0.3, 200)(relevance)
    maps = torch.randn(3, 12, 8, 5)
    cells = tiling.split(maps)
    tokens = gather_cells(cells, selection.indices)
    assert torch.equal(write_cells(cells, selection, tokens), cells)
    written = tiling.join(write_cells(cells, selection, tokens + 1))
    chosen = upsample_cells(selection.mask(tiling.shape), (12, 8))
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


# A layer on some of the cells.


def cells_and(index: torch.Tensor, keep=None, requires_grad: bool = False):
    """A map of 6 cells of 4 tokens for each of 2 images, and a selection of them."""
    return torch.randn(2, 6, 4, 24, dtype=torch.double, requires_grad=requires_grad), Selection(index, keep)


def test_all_cells_selected_is_attention_over_everything():
    block, low = build(), tokens(2, 9)
    cells, selection = cells_and(torch.stack([torch.randperm(6), torch.randperm(6)]))
    new_low, new_cells, *_ = attend_and_write_back(block, low, cells, selection)
    x = torch.cat([low, cells.flatten(1, 2)], 1)
    x = x + torch.stack([plainly(block.attn, image, 9) for image in block.norm1(x)])
    x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(torch.cat([new_low, new_cells.flatten(1, 2)], 1), x)


def test_no_cell_selected_is_plain_attention():
    block, plain, low = build(), build(high_res=False), tokens(2, 9)
    plain.load_state_dict({key: value for key, value in block.state_dict().items() if 'kv_high' not in key})
    cells, selection = cells_and(torch.empty(2, 0, dtype=torch.long))
    new_low, new_cells, *_ = attend_and_write_back(block, low, cells, selection)
    torch.testing.assert_close(new_low, plain(low)[0])
    assert torch.equal(new_cells, cells)
    new_low.sum().backward()
    assert block.attn.kv_high.weight.grad is not None  # an unused parameter would stop distributed training


@pytest.mark.parametrize('keep', [None, torch.tensor([[True, False], [True, True]])])
def test_only_selected_cells_change(keep):
    block, low = build(), tokens(2, 9)
    cells, selection = cells_and(torch.tensor([[4, 1], [0, 2]]), keep)
    _, new_cells, *_ = attend_and_write_back(block, low, cells, selection)
    chosen = selection.mask((1, 6))[:, 0]
    assert torch.equal(new_cells[~chosen], cells[~chosen])
    assert (new_cells[chosen] != cells[chosen]).all()


def test_tokens_beyond_the_map_have_no_influence():
    block, low = build(), tokens(2, 9)
    cells, selection = cells_and(torch.tensor([[4, 1], [0, 2]]))
    valid = torch.ones(6, 4, dtype=torch.bool)
    valid[1, 2:] = valid[2, 1] = False
    outs = []
    for filling in (0.0, 7.0):
        filled = torch.where(valid[..., None], cells, filling)
        new_low, new_cells, *_ = attend_and_write_back(block, low, filled, selection, valid)
        outs.append((new_low, new_cells[:, valid]))
    torch.testing.assert_close(*outs, rtol=0, atol=1e-14)


def test_gradients_reach_what_they_should():
    block, low = build(), tokens(2, 9, requires_grad=True)
    cells, selection = cells_and(torch.tensor([[4, 1], [0, 2]]), requires_grad=True)
    new_low, new_cells, *_ = attend_and_write_back(block, low, cells, selection)
    # through the low-resolution tokens alone, and through those written back alone
    for out in (new_low, new_cells[selection.mask((1, 6))[:, 0]]):
        grads = torch.autograd.grad(out.square().sum(), [cells, low, *block.parameters()], retain_graph=True)
        assert all(grad.abs().max() > 0 for grad in grads)
    unselected = torch.autograd.grad(new_low.square().sum(), cells)[0][~selection.mask((1, 6))[:, 0]]
    assert not unselected.any()
