"""Scenes for a search: a few small targets among decoys, on a ground whose texture is as rich in contrast as they are.

What a target is shows from near alone, by its outline: a disc, a square or a triangle. From afar it is a spot, not much
unlike the decoys, and both are told from the spots of the ground by their hue, which says nothing to a measure of
contrast.
"""

import colorsys

import cv2
import numpy as np

from .mini_scenes import FINE, Instance, Options, Scene, to_pixels
from .mini_shapes import SURFACES, ThingClass

DIAMETER = (8.0, 13.0)  # of targets in image pixels
THING_HUES, GROUND_HUES = (0.92, 1.42), (0.42, 0.92)  # of one circle; what lies between two of one kind is of that kind
CLUTTER = 0.011  # spots of the ground to an image pixel
BARE = 0.15  # share of the picture without them
GROUND, DECOY = SURFACES['sand'], 35  # ADE20K's labels, the latter of rocks
GAP = 2.0  # least distance between two things in image pixels

CORNERS = {'sports ball': 40, 'clock': 4, 'vase': 3}  # corners, of which so many make a disc
TARGETS = (
    ThingClass('sports ball', 'ball', 120, None, (), 0),
    ThingClass('clock', 'clock', 149, None, (), 0),
    ThingClass('vase', 'vase', 136, None, (), 0),
)


def draw_search(options: Options, split: int, index: int) -> Scene:
    """Draw one scene of :attr:`Options.objects` targets and :attr:`Options.decoys` decoys.

    Args:
        options (Options): Options of the set; ``shares``, ``smallest`` and ``crowd`` count for nothing here.
        split (int): 0 for training, 1 for validation.
        index (int): Index of the image in its split.

    Returns:
        Scene: The scene, which depends on the arguments alone.
    """
    rng = np.random.default_rng((options.seed, split, index, 1))
    width, height = options.size
    canvas = _ground(rng, height * FINE, width * FINE)

    empty = 0.618034 * (index + 1) % 1 < options.empty
    targets = 0 if empty else rng.integers(*options.objects, endpoint=True)
    kinds = [TARGETS[rng.integers(options.classes)] for _ in range(targets)]
    kinds += [None] * rng.integers(*options.decoys, endpoint=True)
    labels = np.full((height * FINE, width * FINE), GROUND, np.uint8)
    instances, decoys, placed = [], [], np.zeros((0, 3))
    for kind in kinds:
        diameter = np.exp(rng.uniform(*np.log(DIAMETER)))
        margin = 0.5 * diameter + GAP
        for _ in range(100):
            x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
            if (np.hypot(*(placed[:, :2] - (x, y)).T) > margin + placed[:, 2]).all():
                break
        else:
            continue  # no room left
        placed = np.vstack([placed, (x, y, margin)])
        outline = _target(rng, CORNERS[kind.coco_name]) if kind else _decoy(rng)
        mask = np.zeros(labels.shape, np.uint8)
        cv2.fillPoly(mask, [((outline * diameter / 2 + (x, y)) * FINE).round().astype(np.int32)], 1)
        canvas[mask > 0] = _colour(rng, THING_HUES)
        labels[mask > 0] = kind.ade_label if kind else DECOY
        if kind:
            instances.append(Instance(kind, mask > 0, False))
        else:
            decoys.append(tuple(side / FINE for side in cv2.boundingRect(mask)))

    image = cv2.resize(canvas, options.size, interpolation=cv2.INTER_AREA)
    image += rng.normal(0, 0.015, image.shape)
    return Scene((image.clip(0, 1) * 255).round().astype(np.uint8), to_pixels(labels), instances, decoys)


def _colour(rng: np.random.Generator, hues: tuple[float, float]) -> np.ndarray:
    """A colour of some hue; light and dark ones, full and pale ones are as frequent in all hues."""
    return np.array(
        colorsys.hsv_to_rgb(rng.uniform(*hues) % 1, rng.uniform(0.45, 0.9), rng.uniform(0.35, 0.95)), np.float32
    )


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture (height, width, 3) of grey ramps, fine grain, and spots as large and as colourful as things are."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = rng.uniform(0.4, 0.6) + rng.uniform(0, 0.25) * (np.cos(angle) * x + np.sin(angle) * y)
    canvas = np.repeat(ramp[..., None], 3, axis=2).astype(np.float32)
    grain = rng.standard_normal((height // (2 * FINE) + 1, width // (2 * FINE) + 1)).astype(np.float32)
    canvas += 0.05 * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    # Bare ground where a coarse map of noise is lowest.
    coarse = cv2.resize(rng.standard_normal((6, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    bare = coarse < np.quantile(coarse, BARE)
    for _ in range(round(CLUTTER * height * width / FINE**2)):
        at = rng.integers(width), rng.integers(height)
        if bare[at[::-1]]:
            continue
        outline = _decoy(rng) * np.exp(rng.uniform(*np.log(DIAMETER))) / 2 * FINE + at
        cv2.fillPoly(canvas, [outline.round().astype(np.int32)], _colour(rng, GROUND_HUES).tolist())
    return canvas


def _target(rng: np.random.Generator, corners: int) -> np.ndarray:
    """A regular polygon of the area of a disc of radius 1, turned by chance, (N, 2)."""
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = np.sqrt(2 * np.pi / (corners * np.sin(2 * np.pi / corners)))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _decoy(rng: np.random.Generator) -> np.ndarray:
    """A blob of the area of a target, drawn out more or less, (N, 2)."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    stretch = np.exp(rng.uniform(0.1, 0.65))
    radius = 0.95 * (1 + rng.uniform(-0.12, 0.12) * np.cos(3 * angle + rng.uniform(0, 6)))
    outline = np.stack([stretch * radius * np.cos(angle), radius * np.sin(angle) / stretch], axis=1)
    turn = rng.uniform(0, np.pi)
    return outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
