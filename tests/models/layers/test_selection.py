from mmvisattn.errors import UserError
from mmvisattn.models.layers.selection import Relevance, Selection, TokenSelector, min_max, pool_to_cells

import numpy as np
import pytest
import torch

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
        relevance = chosen.sum((1, 2)).unflatten(1, (24, 24))
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


def test_relevance_is_what_the_questions_answer():
    relevance = Relevance(16).double()
    low = torch.randn(2, 12, 16, dtype=torch.double)
    answers = relevance.norm(low) @ relevance.questions.weight.T + relevance.questions.bias
    expected = answers.exp().sum(-1).log().unflatten(1, (3, 4))
    torch.testing.assert_close(relevance(low, (3, 4)), expected)
    valid = torch.rand(2, 12) > 0.5
    out = relevance(low, (3, 4), valid).flatten(1)
    assert (out[~valid] == float('-inf')).all()
    torch.testing.assert_close(out[valid], expected.flatten(1)[valid])


def test_relevance_is_in_float32():
    assert Relevance(16).bfloat16()(torch.randn(1, 12, 16).bfloat16(), (3, 4)).dtype == torch.float32


def test_the_gate_tells_the_loss_of_chosen_cells_alone():
    logits = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    selection = Selection(torch.tensor([[7, 2], [0, 11]]), None)
    gate = selection.gate(logits, 3)
    assert gate.shape == (2, 6, 1)
    assert (gate == 1).all()
    gate.sum().backward()
    slope = 3 * logits.sigmoid() * (1 - logits.sigmoid())  # of three tokens
    torch.testing.assert_close(logits.grad, slope * selection.mask((3, 4)))


# Choosing cells.


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_constant_relevance_is_harmless(mode):
    selection = TokenSelector(mode).eval()(torch.full((2, 4, 4), 0.3))
    assert torch.equal(min_max(torch.full((2, 8, 8), 0.3)), torch.zeros(2, 8, 8))
    if mode == 'threshold':
        assert selection.indices.shape == (2, 0) and not selection.mask((4, 4)).any()
    else:
        assert selection.mask((4, 4)).sum((1, 2)).tolist() == [4, 4]


@pytest.mark.parametrize(('ratio', 'count'), [(0.0, 0), (0.001, 1), (0.1, 2), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_topk_takes_the_best_cells(ratio, count):
    logits = torch.randn(3, 4, 4)
    selection = TokenSelector('topk', ratio).eval()(logits)
    assert selection.indices.shape == (3, count) and selection.keep is None
    cells = logits.flatten(1)
    torch.testing.assert_close(cells.gather(1, selection.indices).sort(1).values, cells.sort(1).values[:, 16 - count :])


def test_cells_are_as_relevant_as_their_best_token():
    relevance = torch.randn(3, 8, 7)
    cells = pool_to_cells(relevance, 2)
    assert cells.shape == (3, 4, 4)
    torch.testing.assert_close(cells[:, 1, 2], relevance[:, 2:4, 4:6].amax((1, 2)))
    torch.testing.assert_close(cells[:, 1, 3], relevance[:, 2:4, 6:].amax((1, 2)))


def test_threshold_takes_what_each_image_asks_for():
    scores = torch.zeros(3, 2, 3)
    scores[0, 0, 0] = scores[1, 1, 2] = 1.0
    scores[1, 0, 1] = 48.5 / 255
    scores[1, 0, 0] = 48.0 / 255
    selection = TokenSelector('threshold', threshold=48).choose(scores)
    assert selection.keep.sum(1).tolist() == [1, 2, 0]
    assert all(len(set(row)) == 2 for row in selection.indices.tolist())
    expected = torch.zeros(3, 2, 3, dtype=torch.bool)
    expected[0, 0, 0] = expected[1, 1, 2] = expected[1, 0, 1] = True
    assert torch.equal(selection.mask((2, 3)), expected)


def test_threshold_goes_by_the_attention_of_the_questions():
    logits = torch.randn(2, 3, 4) * 2
    attention = logits.flatten(1).exp()
    attention = attention - attention.amin(1, keepdim=True)
    expected = (attention / attention.amax(1, keepdim=True) * 255 > 64).unflatten(1, (3, 4))
    assert torch.equal(TokenSelector('threshold', threshold=64)(logits).mask((3, 4)), expected)


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
@pytest.mark.parametrize('ratio', [0.25, 1.0])
@pytest.mark.parametrize('training', [False, True])
def test_nothing_is_chosen_in_padding(mode, ratio, training):
    logits, valid = torch.randn(3, 4, 6), torch.zeros(3, 4, 6, dtype=torch.bool)
    for i, (rows, columns) in enumerate([(4, 6), (2, 6), (1, 1)]):
        valid[i, :rows, :columns] = True
    selector = TokenSelector(mode, ratio, threshold=0, explore=0.5).train(training)
    for filling in (float('-inf'), 5.0):
        for _ in range(20):  # by chance as well
            chosen = selector(torch.where(valid, logits, filling), valid).mask((4, 6))
            assert not (chosen & ~valid).any()
            if mode == 'topk':
                assert chosen.sum((1, 2)).tolist() == ([6, 3, 1] if ratio < 1 else [24, 12, 1])


@pytest.mark.parametrize('mode', ['topk', 'threshold'])
def test_an_image_with_padding_is_given_what_it_is_given_alone(mode):
    torch.manual_seed(0)
    logits, valid = torch.randn(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 2:] = False
    logits[1, 2:] = float('-inf')
    selector = TokenSelector(mode, 0.25, 100).eval()
    alone = selector(logits[1:, :2]).mask((2, 4))
    assert 0 < alone.sum() < 8
    assert torch.equal(selector(logits, valid).mask((4, 4))[1:, :2], alone)


@pytest.mark.parametrize('ratio', [0.1, 0.15, 0.3, 0.5, 0.7, 1.0, 0.0, 1e-3])
def test_share_of_a_padded_image_is_rounded_as_that_of_a_whole_one(ratio):
    selector = TokenSelector('topk', ratio)
    counts = selector.count(torch.arange(1, 400).double()).tolist()
    assert counts == [selector.count(n) for n in range(1, 400)]


def test_a_part_is_drawn_at_random_in_training_alone():
    logits = torch.linspace(1, 0, 100).view(1, 10, 10).expand(200, -1, -1)
    selector = TokenSelector('topk', 0.2, explore=0.15)
    best = selector(logits).indices < 20
    assert best.shape == (200, 20)
    # of 20 cells 3 are drawn in the mean, from the 83 that are left; now and then one would have been taken anyway
    assert 0.10 < 1 - best.float().mean() < 0.17
    drawn = selector(logits).indices
    assert all(len(set(row)) == 20 for row in drawn.tolist())
    assert drawn[drawn >= 20].unique().numel() == 80
    assert (selector.eval()(logits).indices < 20).all()
    assert (TokenSelector('topk', 0.2, explore=0.0)(logits).indices < 20).all()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(mode='treshold'), r"'treshold' \(did you mean 'threshold'\?\)"),
        (dict(ratio=1.5), '`select_ratio` is 1.5'),
        (dict(ratio=-0.1), 'from 0'),
        (dict(threshold=300), '`select_threshold` is 300'),
        (dict(explore=1.5), '`select_explore` is 1.5'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        TokenSelector(**kwargs)
