from mmvisattn.models.layers.map_scout import MapScout

import pytest
import torch


def scout_of_first_channel(zoom: int) -> MapScout:
    """A scout whose logit of a place grows with its first channel, after the norm."""
    scout = MapScout(8, zoom)
    for parameter in scout.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(scout.norm.weight)
    with torch.no_grad():
        scout.hidden.weight[0, 0] = scout.judge.weight[0, 0] = 1
    return scout


def places(scout: MapScout, high: torch.Tensor) -> torch.Tensor:
    """The logit of each place by hand, (B, H·W)."""
    return torch.nn.functional.gelu(torch.nn.functional.layer_norm(high, (8,), eps=1e-6)[..., 0])


def test_a_coarse_token_is_worth_its_best_place():
    torch.manual_seed(0)
    scout, high = scout_of_first_channel(2), torch.randn(2, 24, 8)
    expected = places(scout, high).unflatten(1, (2, 2, 3, 2)).amax((2, 4))  # 4×6 places
    torch.testing.assert_close(scout(high, (4, 6), (2, 3)), expected)


@pytest.mark.parametrize(('low_grid', 'spans'), [((3, 2), [2, 2, 1]), ((2, 2), [2, 3])])
def test_the_last_token_stands_for_what_is_left(low_grid, spans):
    torch.manual_seed(0)
    scout, high = scout_of_first_channel(2), torch.randn(1, 20, 8)  # 5×4 places
    rows = places(scout, high).unflatten(1, (5, 2, 2)).amax(3).split(spans, 1)
    torch.testing.assert_close(scout(high, (5, 4), low_grid), torch.stack([row.amax(1) for row in rows], 1))


def test_padding_is_worth_nothing():
    torch.manual_seed(0)
    scout, high = MapScout(8, 2), torch.randn(1, 16, 8)
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :3, :2] = True
    worth = scout(high, (4, 4), (2, 2), inside.flatten(1))
    assert worth.isfinite().tolist() == [[[True, False], [True, False]]]
    high.view(1, 4, 4, 8)[~inside] = 100 * torch.randn(10, 8)
    assert torch.equal(scout(high, (4, 4), (2, 2), inside.flatten(1)), worth)


def test_it_begins_with_few_places_worth_a_look():
    torch.manual_seed(0)
    assert MapScout(8, 2)(torch.randn(1, 16, 8), (4, 4), (2, 2)).sigmoid().mean() < 0.1
