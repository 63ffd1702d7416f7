"""The shapes of the mini data set: how each class of things is drawn, and its names in COCO and ADE20K.

Every function draws one thing that stands on the origin, about two units wide or tall, as polygons with a tone. The
tones get random colours later, so that nothing but the outline and the parts tells what it is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Part = tuple[np.ndarray, int]  # polygon (N, 2), x to the right and y down, and its tone
BODY, ACCENT, LIGHT, DARK = range(4)  # tones


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _smooth(points: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Rounds the corners of a polygon by cutting them (Chaikin)."""
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.8 * points + 0.2 * after, 0.2 * points + 0.8 * after], axis=1).reshape(-1, 2)
    return points


def _ellipse(x: float, y: float, rx: float, ry: float | None = None) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + (rx if ry is None else ry) * np.sin(angle)], axis=1)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A stroke from one point to another with square ends."""
    side = np.array([y0 - y1, x1 - x0]) / np.hypot(x1 - x0, y1 - y0) * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([start + side, end + side, end - side, start - side])


def _wheels(rng: np.random.Generator, xs: Sequence[float], radius: float) -> list[Part]:
    hub = radius * rng.uniform(0.35, 0.6)
    return [part for x in xs for part in ((_ellipse(x, -radius, radius), DARK), (_ellipse(x, -radius, hub), LIGHT))]


def _car(rng: np.random.Generator) -> list[Part]:
    roof, belt, bonnet = rng.uniform(-1.0, -0.86), -0.6, rng.uniform(-0.58, -0.46)
    front = rng.uniform(0.15, 0.35)
    body = _polygon(
        (-1, -0.16),
        (-1, -0.52),
        (-0.78, belt),
        (-0.5, roof),
        (front, roof),
        (front + 0.32, belt),
        (1, bonnet),
        (1, -0.16),
    )
    middle = rng.uniform(-0.2, 0.0)
    panes = (
        _polygon((-0.66, belt), (-0.46, roof + 0.08), (middle - 0.04, roof + 0.08), (middle - 0.04, belt)),
        _polygon((middle + 0.04, belt), (middle + 0.04, roof + 0.08), (front - 0.03, roof + 0.08), (front + 0.2, belt)),
    )
    return [
        (_smooth(body), BODY),
        *((pane, LIGHT) for pane in panes),
        (_box(-0.98, -0.36, 0.98, -0.29), ACCENT),
        *_wheels(rng, (-0.58, 0.58), rng.uniform(0.2, 0.25)),
    ]


def _airplane(rng: np.random.Generator) -> list[Part]:
    span, sweep = rng.uniform(0.8, 1.0), rng.uniform(0.25, 0.5)
    parts: list[Part] = []
    for side in (-1, 1):
        wing = _polygon((0.3, 0), (-0.05, 0), (-0.12 - sweep, side * span), (0.08 - sweep, side * span))
        tail = _polygon((-0.62, 0), (-0.9, 0), (-1.02, side * 0.36), (-0.86, side * 0.36))
        engine = _ellipse(0.1 - sweep / 2, side * span / 2, 0.13, 0.06)
        parts += [(wing, ACCENT), (tail, ACCENT), (engine, DARK)]
    return [*parts, (_ellipse(0, 0, 1, 0.13), BODY), (_ellipse(0.74, 0, 0.13, 0.08), LIGHT)]


def _boat(rng: np.random.Generator) -> list[Part]:
    top, mast = rng.uniform(-1.8, -1.5), rng.uniform(-0.1, 0.1)
    hull = _polygon((-1, -0.42), (1, -0.42), (0.68, 0), (-0.7, 0))
    return [
        (_polygon((mast + 0.05, top), (mast + 0.05, -0.52), (rng.uniform(0.75, 0.95), -0.52)), LIGHT),
        (_polygon((mast - 0.05, top + 0.25), (mast - 0.05, -0.52), (rng.uniform(-0.8, -0.6), -0.52)), ACCENT),
        (_box(mast - 0.05, top - 0.08, mast + 0.05, -0.4), DARK),
        (hull, BODY),
        (_polygon((-0.93, -0.33), (0.93, -0.33), (0.85, -0.22), (-0.85, -0.22)), ACCENT),
    ]


def _ball(rng: np.random.Generator) -> list[Part]:
    ball = _ellipse(0, -1, 1)
    pole = np.array([rng.uniform(-0.4, 0.4), -1 + rng.uniform(-0.4, 0.4)])
    start, step = rng.integers(12), 36 // 6
    wedges = [np.vstack([pole, ball[(np.arange(step + 1) + start + k * step) % 36]]) for k in range(6)]
    return [
        (ball, BODY),
        *((wedge, (ACCENT, LIGHT)[k // 2 % 2]) for k, wedge in enumerate(wedges) if k % 2),
        (_ellipse(*pole, 0.16), DARK),
    ]


def _person(rng: np.random.Generator) -> list[Part]:
    stride, left, right = rng.uniform(0.1, 0.3), rng.uniform(0.25, 0.6), rng.uniform(0.25, 0.6)
    hands = -0.95 if rng.random() < 0.75 else -2.0  # hanging or waving
    trunk = _polygon((-0.34, -1.56), (0.34, -1.56), (0.26, -0.8), (-0.26, -0.8))
    return [
        (_bar(-0.12, -0.9, -stride, 0, 0.22), ACCENT),
        (_bar(0.12, -0.9, stride, 0, 0.22), ACCENT),
        (_bar(-0.26, -1.46, -0.2 - left, -0.95, 0.17), DARK),
        (_bar(0.26, -1.46, 0.2 + right, hands, 0.17), DARK),
        (_smooth(trunk, 1), BODY),
        (_ellipse(0, -1.8, 0.22, 0.25), LIGHT),
    ]


def _bench(rng: np.random.Generator) -> list[Part]:
    seat, back, lean = rng.uniform(-0.55, -0.45), rng.uniform(-1.15, -1.0), rng.uniform(0.75, 0.9)
    legs = [(_bar(side * lean, seat, side * (lean + 0.04), 0, 0.14), DARK) for side in (-1, 1)]
    posts = [(_bar(side * lean, seat, side * lean, back, 0.12), DARK) for side in (-1, 1)]
    slats = [(_box(-1, back + y, 1, back + y + 0.17), BODY) for y in (0.02, 0.27)]
    return [
        *posts,
        *slats,
        *legs,
        (_polygon((-0.95, seat - 0.08), (0.95, seat - 0.08), (1.1, seat + 0.14), (-1.1, seat + 0.14)), ACCENT),
    ]


def _bus(rng: np.random.Generator) -> list[Part]:
    roof, count = rng.uniform(-1.15, -1.0), rng.integers(3, 6)
    edges = np.linspace(-0.98, 0.72, count + 1)
    panes = [(_box(a + 0.04, roof + 0.16, b - 0.04, -0.58), LIGHT) for a, b in zip(edges, edges[1:])]
    return [
        (_smooth(_box(-1.1, roof, 1.1, -0.14), 2), BODY),
        *panes,
        (_box(0.76, roof + 0.2, 1.0, -0.2), DARK),
        (_box(-1.04, -0.46, 0.74, -0.36), ACCENT),
        *_wheels(rng, (-0.62, 0.56), 0.2),
    ]


def _traffic_light(rng: np.random.Generator) -> list[Part]:
    lit = rng.integers(3)
    lamps = [(_ellipse(0, y, 0.19), LIGHT if k == lit else DARK) for k, y in enumerate((-1.75, -1.27, -0.79))]
    pole = _box(-0.09, -0.5, 0.09, 0)
    return [(pole, ACCENT), (_smooth(_box(-0.36, -2.05, 0.36, -0.48), 2), BODY), *lamps]


def rock(rng: np.random.Generator) -> list[Part]:
    """Something that belongs to no class."""
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    radius = 1 + sum(rng.uniform(-0.35, 0.35) / k * np.cos(k * angle + rng.uniform(0, 6)) for k in (1, 2, 3, 4))
    outline = np.stack([rng.uniform(0.7, 1.3) * radius * np.cos(angle), radius * np.sin(angle) - 1], axis=1)
    inner = outline * rng.uniform(0.4, 0.7) + rng.uniform(-0.3, 0.3, 2) + (0, -0.4)
    return [(outline, BODY), (inner, rng.integers(4))] if rng.random() < 0.5 else [(outline, BODY)]


class ThingClass(NamedTuple):
    """A class of objects: its names and numbers in both data sets, how it is drawn, where it is mostly found."""

    coco_name: str
    ade_name: str
    ade_label: int
    draw: Callable[[np.random.Generator], list[Part]]
    home: tuple[str, ...]
    tilt: float  # largest rotation in degrees


LAND = ('grass', 'sand')
THINGS = (
    ThingClass('car', 'car', 21, _car, LAND, 12),
    ThingClass('airplane', 'airplane', 91, _airplane, ('sky',), 50),
    ThingClass('boat', 'boat', 77, _boat, ('sea',), 12),
    ThingClass('sports ball', 'ball', 120, _ball, ('grass', 'sand', 'sea', 'sky'), 180),
    ThingClass('person', 'person', 13, _person, LAND, 10),
    ThingClass('bench', 'bench', 70, _bench, LAND, 8),
    ThingClass('bus', 'bus', 81, _bus, LAND, 10),
    ThingClass('traffic light', 'traffic light', 137, _traffic_light, LAND, 10),
)
SURFACES = {'sky': 3, 'mountain': 17, 'grass': 10, 'sea': 27, 'sand': 47}  # ADE20K's labels

# The names of COCO's categories in its order; its numbers run from 1 to 90 with gaps.
_COCO_NAMES = (
    'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, '
    'parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, '
    'handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, '
    'surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, '
    'broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, '
    'laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, '
    'scissors, teddy bear, hair drier, toothbrush'
).split(', ')
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = dict(zip(_COCO_NAMES, (number for number in range(1, 91) if number not in _COCO_GAPS)))
