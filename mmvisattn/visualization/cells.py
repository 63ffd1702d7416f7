"""Pictures of the cells that a network chose."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

PANEL_SIZE = 320  # longer side of a panel, pixels
CAPTION_HEIGHT = 22  # of the line of text above a panel
GAP = 4  # between panels
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
    scale = PANEL_SIZE / size.max()
    panel = np.maximum(np.round(size * scale), 1).astype(int)
    picture = cv2.resize(picture, panel[::-1].tolist(), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    cell = tuple(cell * panel / size)
    panels = [_caption(picture, title)]
    for number, chosen in layers.items():
        text = f'layer {number}: {chosen.sum()} of {chosen.size}'
        panels += [_white(len(panels[0]), GAP), _caption(draw_cells(picture, chosen, cell), text)]
    return np.hstack(panels)


def stack_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of panels on one sheet, one below the other."""
    width = max(row.shape[1] for row in rows)
    lines = []
    for row in rows:
        lines += [_white(GAP, width), np.hstack([row, _white(len(row), width - row.shape[1])])]
    return np.vstack(lines[1:])


def _white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def _caption(panel: np.ndarray, text: str) -> np.ndarray:
    line = _white(CAPTION_HEIGHT, panel.shape[1])
    cv2.putText(line, text, (4, CAPTION_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([line, panel])
