from mmvisattn.visualization.panels import colour, enlarge, overlay

import numpy as np
import pytest


def test_colours_diverge_from_zero_where_numbers_have_signs():
    both = colour(np.array([-2.0, 0.0, 1.0]))
    assert both[1].min() > 200 and both[0][0] > both[0][2] and both[2][2] > both[2][0]  # white; blue; red, in BGR
    # Heads of one sign are comparable with those of both.
    np.testing.assert_array_equal(colour(np.array([0.0, 1.0, 2.0]), signed=True)[0], both[1])
    assert colour(np.array([0.0, 1.0, 2.0]))[0].max() < 100  # the dark end of viridis
    assert colour(np.zeros(3), signed=True).min() > 200


def test_a_map_lies_over_its_cells():
    values = np.array([[0.0, 1.0], [2.0, 3.0]])
    large = enlarge(values, (10, 5), (20, 10))
    np.testing.assert_allclose(large[[4, 5], [2, 2]].mean(), 0.0, atol=0.2)
    assert large[15, 7] == pytest.approx(3, abs=0.2) and large[15, 2] == pytest.approx(2, abs=0.2)
    picture = np.random.default_rng(0).integers(0, 256, (20, 10, 3)).astype(np.uint8)
    drawn = overlay(picture, values, (10, 5))
    assert drawn.shape == picture.shape and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
