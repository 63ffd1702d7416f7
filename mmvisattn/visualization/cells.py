"""Pictures of the cells that a network chose."""

from collections.abc import Mapping

import numpy as np

from .panels import caption, fit, join_panels

DIMMED = 0.3  # brightness of what was not chosen


def draw_cells(picture: np.ndarray, chosen: np.ndarray, cell: tuple[float, float]) -> np.ndarray:
    """A picture with all but the chosen cells dimmed.

    Args:
        picture (np.ndarray): (H, W, 3), uint8.
        chosen (np.ndarray): Which cells of the grid that begins at the top left corner are chosen, boolean, (rows,
            columns); it may reach beyond the picture, never the other way round.
        cell (tuple[float, float]): Height and width of a cell in pixels, not always whole.

    Returns:
        np.ndarray: (H, W, 3), uint8.
    """
    row, column = ((np.arange(pixels) / side).astype(int) for pixels, side in zip(picture.shape, cell))
    bright = chosen[row[:, None], column]  # (H, W)
    return np.where(bright[..., None], picture, DIMMED * picture).astype(np.uint8)


def draw_layers(
    picture: np.ndarray, title: str, layers: Mapping[int, np.ndarray], cell: tuple[float, float]
) -> np.ndarray:
    """A picture, and beside it a panel for each layer with the cells that it attends to.

    Args:
        picture (np.ndarray): (H, W, 3), uint8.
        title (str): What to write above the picture.
        layers (Mapping[int, np.ndarray]): Number of each layer and its cells, as :func:`draw_cells` takes them.
        cell (tuple[float, float]): Height and width of a cell in pixels of the picture.

    Returns:
        np.ndarray: A row of panels whose longer side is ``PANEL_SIZE``, with captions.
    """
    size = np.array(picture.shape[:2])
    picture = fit(picture)
    cell = tuple(cell * np.array(picture.shape[:2]) / size)
    panels = [caption(picture, title)]
    for number, chosen in layers.items():
        text = f'layer {number}: {chosen.sum()} of {chosen.size}'
        panels.append(caption(draw_cells(picture, chosen, cell), text))
    return join_panels(panels)
