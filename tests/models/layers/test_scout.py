from mmvisattn.models.layers.scout import PIXELS, Scout, sight

import pytest
import torch


def build(patch_size: int) -> Scout:
    torch.manual_seed(0)
    return Scout(3, patch_size).double().eval()


@pytest.mark.parametrize(('patch_size', 'stride'), [(1, 1), (4, 1), (7, 1), (8, 2), (14, 2), (16, 4), (32, 8)])
def test_a_patch_is_a_whole_number_of_places(patch_size, stride):
    scout = build(patch_size)
    assert scout.stride == stride
    assert scout(torch.randn(2, 3, 3 * patch_size, 2 * patch_size).double()).shape == (2, 3, 2)


def test_a_thing_is_judged_alike_wherever_in_the_image_it_is():
    scout = build(8)
    thing = torch.randn(3, 3, 3).double()
    judged = []
    for row, column in ((16, 16), (18, 20), (22, 30)):  # in the middle of a patch and across the border of two
        x = torch.zeros(1, 3, 64, 64).double()
        x[0, :, row : row + 3, column : column + 3] = thing
        judged.append(scout(x).max())
    torch.testing.assert_close(judged[1], judged[0])
    torch.testing.assert_close(judged[2], judged[0])


def test_a_patch_is_worth_its_best_place():
    scout = build(8)
    x = torch.randn(1, 3, 16, 24).double()
    seen = []
    scout.judge.register_forward_hook(lambda module, args, out: seen.append(out))
    out = scout(x)
    (places,) = seen
    assert places.shape == (1, 1, 8, 12)
    assert torch.equal(out[0, 1, 2], places[0, 0, 4:, 8:].max())


def test_an_image_is_judged_alike_with_padding_around_it():
    scout = build(16)
    x = torch.randn(1, 3, 32, 48).double()
    padded = torch.zeros(2, 3, 64, 64).double()
    padded[0, :, :32, :48] = x
    padded[1] = torch.randn(3, 64, 64)
    out = scout(padded, torch.tensor([[2, 3], [4, 4]]))
    torch.testing.assert_close(out[:1, :2, :3], scout(x))
    torch.testing.assert_close(out[1:], scout(padded[1:]))


def test_judgement_is_in_float32():
    assert build(8).bfloat16()(torch.randn(1, 3, 16, 16).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ('patch_size', 'zoom', 'expected'),
    [(16, 2, 2), (16, 4, 4), (32, 2, 2), (8, 4, 2), (8, 3, 1), (4, 4, 1), (4, 2, 1)],
)
def test_a_scout_sees_pixels_enough_of_a_patch(patch_size, zoom, expected):
    shrunk = sight(patch_size, zoom)
    assert shrunk == expected and zoom % shrunk == 0
    assert patch_size * zoom // shrunk >= PIXELS or shrunk == 1
