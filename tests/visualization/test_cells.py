from mmvisattn.visualization import CAPTION_HEIGHT, DIMMED, GAP, PANEL_SIZE, draw_cells, draw_layers, stack_rows

import cv2
import numpy as np
import pytest


def picture(height: int, width: int) -> np.ndarray:
    """Random, and nowhere dark, so that dimming shows in every pixel."""
    return np.random.default_rng(0).integers(50, 256, (height, width, 3)).astype(np.uint8)


# The last: cells of a fraction of a pixel more than 7, and a row of cells beyond the picture.
@pytest.mark.parametrize(('size', 'cell'), [((40, 60), (10, 20)), ((35, 50), (10, 20)), ((28, 30), (7.5, 7.25))])
def test_draw_cells(size, cell):
    image = picture(*size)
    chosen = np.random.default_rng(1).random((5, 5)) < 0.5
    drawn = draw_cells(image, chosen, cell)
    for y in range(size[0]):
        for x in range(size[1]):
            bright = chosen[int(y // cell[0]), int(x // cell[1])]
            np.testing.assert_array_equal(drawn[y, x], image[y, x] if bright else (DIMMED * image[y, x]).astype(int))


@pytest.mark.parametrize('size', [(40, 60), (700, 500)])
def test_draw_layers_and_stack_rows(size):
    image = picture(*size)
    layers = {3: np.ones((3, 3), bool), 4: np.zeros((3, 3), bool)}
    row = draw_layers(image, 'a title', layers, (size[0] / 3, size[1] / 3))
    height, width = (round(side * PANEL_SIZE / max(size)) for side in size)
    assert row.shape == (CAPTION_HEIGHT + height, 3 * width + 2 * GAP, 3)
    plain, everything, nothing = (row[CAPTION_HEIGHT:, i * (width + GAP) :][:, :width] for i in range(3))
    scaled = cv2.resize(image, (width, height))
    assert np.abs(plain.astype(float) - scaled).mean() < 40  # noise, scaled by other weights
    np.testing.assert_array_equal(everything, plain)
    np.testing.assert_array_equal(nothing, (DIMMED * plain).astype(np.uint8))
    captions = [row[:CAPTION_HEIGHT, i * (width + GAP) :][:, :width] for i in range(3)]
    assert all(caption.min() < 50 and caption.max() == 255 for caption in captions)  # something is written
    assert not np.array_equal(captions[1], captions[2])

    sheet = stack_rows([row, row[:, :100]])
    assert sheet.shape == (2 * len(row) + GAP, row.shape[1], 3)
    np.testing.assert_array_equal(sheet[: len(row)], row)
    np.testing.assert_array_equal(sheet[-len(row) :, :100], row[:, :100])
    assert (sheet[len(row) :][:GAP] == 255).all() and (sheet[-len(row) :, 100:] == 255).all()
