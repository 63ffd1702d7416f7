"""Panels: a picture with a caption above it, a map of numbers laid over a picture, rows of them on a sheet."""

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np

PANEL_SIZE = 320  # longer side of a panel, pixels
CAPTION_HEIGHT = 22  # of the line of text above a panel
GAP = 4  # between panels
OPACITY = 0.6  # of a map over a picture


def colour(values: np.ndarray, signed: bool = False) -> np.ndarray:
    """Numbers as colours for OpenCV: viridis from the least to the largest, or, of both signs, blue by white to red.

    Args:
        values (np.ndarray): Finite numbers of any shape; those of both signs have white at zero.
        signed (bool): The numbers could be of both signs, so white is zero even if they are not. Defaults to False.

    Returns:
        np.ndarray: BGR, uint8, with an axis more.
    """
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    if signed or low < 0 < high:
        signed, high = True, max(-low, high)
        low = -high
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5 if signed else 0)
    colours = matplotlib.colormaps['coolwarm' if signed else 'viridis'](scaled)[..., 2::-1]
    return np.round(255 * colours).astype(np.uint8)


def enlarge(values: np.ndarray, cell: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """A map in the pixels of a picture, between the centres of positions linearly.

    Args:
        values (np.ndarray): (rows, columns).
        cell (tuple[float, float]): Height and width of a position in pixels, not always whole.
        size (tuple[int, int]): Height and width of the picture, which the map may reach beyond.

    Returns:
        np.ndarray: Of the size of the picture, float32.
    """
    grid = np.meshgrid(*((np.arange(n) + 0.5) / side - 0.5 for n, side in zip(size, cell)), indexing='ij')
    rows, columns = (axis.astype(np.float32) for axis in grid)
    return cv2.remap(values.astype(np.float32), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def overlay(picture: np.ndarray, values: np.ndarray, cell: tuple[float, float], signed: bool = False) -> np.ndarray:
    """A map in colours over a greyed picture (H, W, 3), see :func:`enlarge` and :func:`colour`."""
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    colours = colour(enlarge(values, cell, picture.shape[:2]), signed)
    return np.round(OPACITY * colours + (1 - OPACITY) * grey).astype(np.uint8)


def fit(picture: np.ndarray, size: int = PANEL_SIZE) -> np.ndarray:
    """A picture whose longer side is so many pixels."""
    scale = size / max(picture.shape[:2])
    panel = [max(round(side * scale), 1) for side in picture.shape[1::-1]]
    return cv2.resize(picture, panel, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def white(height: int, width: int) -> np.ndarray:
    """A white picture."""
    return np.full((height, width, 3), 255, np.uint8)


def caption(panel: np.ndarray, text: str) -> np.ndarray:
    """A panel with a line of text above it."""
    line = white(CAPTION_HEIGHT, panel.shape[1])
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
    scale = min(0.45, 0.45 * (panel.shape[1] - 8) / max(width, 1))
    cv2.putText(line, text, (4, CAPTION_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([line, panel])


def join_panels(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels beside each other, lower ones filled up with white."""
    height = max(len(panel) for panel in panels)
    parts = []
    for panel in panels:
        parts += [white(height, GAP), np.vstack([panel, white(height - len(panel), panel.shape[1])])]
    return np.hstack(parts[1:])


def stack_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of panels on one sheet, one below the other."""
    width = max(row.shape[1] for row in rows)
    lines = []
    for row in rows:
        lines += [white(GAP, width), np.hstack([row, white(len(row), width - row.shape[1])])]
    return np.vstack(lines[1:])
