from mmvisattn.models.layers import PatchSequence
from mmvisattn.models.layers.patch_sequence import to_map, to_sequence

import pytest
import torch


def padded(x, window):
    return torch.nn.functional.pad(x, (0, -x.shape[3] % window[1], 0, -x.shape[2] % window[0]))


@pytest.mark.parametrize('window', [(4, 4), (14, 14), (1, 1), (3, 5)])
@pytest.mark.parametrize('size', [(1, 1), (4, 4), (5, 7), (7, 10), (8, 12), (13, 3), (29, 31)])
def test_order_is_undone_exactly(size, window):
    x = torch.randn(2, 3, *size)
    tokens = to_sequence(padded(x, window), size, window)
    assert torch.equal(to_map(tokens, size, window), x)


def naive_order(size, window):
    """Rows and columns of the tokens, window by window, up to the last that is in the map."""
    order = [
        (top + row, left + col)
        for top in range(0, size[0], window[0])
        for left in range(0, size[1], window[1])
        for row in range(window[0])
        for col in range(window[1])
    ]
    while order[-1][0] >= size[0] or order[-1][1] >= size[1]:
        order.pop()
    return order


@pytest.mark.parametrize('window', [(4, 4), (14, 14), (3, 5)])
@pytest.mark.parametrize('size', [(1, 1), (4, 4), (5, 7), (7, 10), (13, 3)])
def test_windows_follow_each_other(size, window):
    rows, cols = (-(-n // w) * w for n, w in zip(size, window))
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing='ij'))[None]
    assert [tuple(place) for place in to_sequence(places, size, window)[0].tolist()] == naive_order(size, window)


@pytest.mark.parametrize(
    'token_order, height, width, length',
    [
        ('raster', 100, 150, 7 * 10),
        ('window', 64, 64, 16),
        ('window', 100, 150, (2 * 3 - 1) * 16 + 2 * 4 + 2),
        ('window', 65, 16, 16 + 1),
    ],
)
def test_length_of_the_sequence(token_order, height, width, length):
    embed = PatchSequence(8, token_order, pretrain_size=64)
    assert embed(torch.randn(2, 3, height, width)).shape == (2, length, 8)


def test_padding_is_zero_pixels():
    embed = PatchSequence(8, 'window', pretrain_size=64)
    x = torch.randn(1, 3, 40, 100)
    image = torch.zeros(1, 3, 64, 128)
    image[..., :40, :100] = x
    torch.testing.assert_close(embed(x), embed(image)[:, : embed(x).shape[1]])
    torch.testing.assert_close(embed(x)[0, 12], embed.projection.bias)  # the last row of the first window
