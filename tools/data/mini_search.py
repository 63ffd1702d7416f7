"""Scenes for a search: a few small targets among decoys, on a ground whose texture is as rich in contrast as they are.

Which class a target is of shows from near alone, by the direction of the slots that are cut into it. From afar it is a
spot, not much unlike the decoys, whose slots are round and whose outline is drawn out; both are told from the spots of
the ground by their hue, which says nothing to a measure of contrast.
"""

import colorsys

import cv2
import numpy as np

from .mini_scenes import FINE, OTHER, Instance, Options, Scene, to_pixels
from .mini_shapes import SURFACES, ThingClass

DIAMETER = (8.0, 13.0)  # of targets in image pixels
THING_HUES, GROUND_HUES = (0.92, 1.42), (0.42, 0.92)  # of one circle; what lies between two of one kind is of that kind
CLUTTER = 0.011  # spots of the ground to an image pixel
LABELLED = 0.08  # share of these that the labels of ADE20K name
BARE = 0.15  # share of the picture without them
GROUND, DECOY = SURFACES['sand'], 35  # ADE20K's labels, the latter of rocks
GAP = 2.0  # least distance between two things in image pixels

SLOT = 4.0  # from one slot to the next in image pixels, the width of a slot being half of it
SLOTS = {'sports ball': 0.0, 'clock': 90.0, 'vase': 45.0}  # their direction in degrees; 135° is as likely as 45°
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
    canvas, labels = _ground(rng, height * FINE, width * FINE)

    empty = 0.618034 * (index + 1) % 1 < options.empty
    targets = 0 if empty else rng.integers(*options.objects, endpoint=True)
    kinds = [TARGETS[rng.integers(options.classes)] for _ in range(targets)]
    kinds += [None] * rng.integers(*options.decoys, endpoint=True)
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
        outline = (_blob(rng, 0.45, 0.8) if kind is None else _blob(rng, 0, 0)) * diameter / 2 + (x, y)
        mask = np.zeros(labels.shape, np.uint8)
        cv2.fillPoly(mask, [(outline * FINE).round().astype(np.int32)], 1)
        rows, columns = np.nonzero(mask)
        left = _bars(rng, rows / FINE - y, columns / FINE - x, kind)
        canvas[rows[left], columns[left]] = _colour(rng, THING_HUES)
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


def _ground(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (height, width, 3) of grey ramps, fine grain, and spots as large and as colourful as things are.

    Of the labels (height, width) a few spots have one, so that what is labelled is not nearly all ground.
    """
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = rng.uniform(0.4, 0.6) + rng.uniform(0, 0.25) * (np.cos(angle) * x + np.sin(angle) * y)
    canvas = np.repeat(ramp[..., None], 3, axis=2).astype(np.float32)
    grain = rng.standard_normal((height // (2 * FINE) + 1, width // (2 * FINE) + 1)).astype(np.float32)
    canvas += 0.05 * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    # Bare ground where a coarse map of noise is lowest.
    coarse = cv2.resize(rng.standard_normal((6, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    bare = coarse < np.quantile(coarse, BARE)
    labels = np.full((height, width), OTHER, np.uint8)
    count = round(CLUTTER * height * width / FINE**2)
    for number in range(count):
        at = rng.integers(width), rng.integers(height)
        if bare[at[::-1]]:
            continue
        outline = _blob(rng, 0.15, 0.65) * np.exp(rng.uniform(*np.log(DIAMETER))) / 2 * FINE + at
        outline = outline.round().astype(np.int32)
        cv2.fillPoly(canvas, [outline], _colour(rng, GROUND_HUES).tolist())
        if number > (1 - LABELLED) * count:
            cv2.fillPoly(labels, [outline], GROUND)
    return canvas, labels


def _bars(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, kind: ThingClass | None) -> np.ndarray:
    """Whether slots leave what is at so many pixels from the middle: straight ones of a class, or rings of a decoy."""
    if kind is None:
        across = np.hypot(x, y)
    else:
        angle = np.deg2rad(SLOTS[kind.coco_name] + (90 if kind.coco_name == 'vase' and rng.random() < 0.5 else 0))
        across = np.cos(angle) * x + np.sin(angle) * y
    return (across / SLOT + rng.random()) % 1 < 0.5


def _blob(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A smooth outline of the area of a disc of radius 1, (N, 2), drawn out by the exponential of something between."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    stretch = np.exp(rng.uniform(least, most))
    radius = 1 + (0.12 * np.cos(3 * angle + rng.uniform(0, 6)) if most else 0)
    outline = np.stack([stretch * radius * np.cos(angle), radius * np.sin(angle) / stretch], axis=1)
    turn = rng.uniform(0, np.pi)
    return outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
