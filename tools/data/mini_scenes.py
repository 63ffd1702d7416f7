"""The scenes of the mini data set: landscapes of textured surfaces with things in them, and what is to be seen of each.

A scene is drawn finer than it is wanted and averaged down, which smooths every edge. Things are painted from far to
near, and what is left of each on the canvas is its mask.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from .mini_shapes import SURFACES, THINGS, ThingClass, rock

FINE = 3  # canvas pixels along a side of an image pixel; odd, so that image pixels have a centre sample
SIZE_BOUNDS = (32, 96)  # COCO's limits between small, medium and large, as the root of the area in pixels
MIN_VISIBLE = 0.5  # least share of a thing that others in front of it and the image's edge must leave
TRIES = 40  # places tried for a thing before the scene goes without it
OTHER = 0  # ADE20K's label of what belongs to no class


@dataclass(frozen=True)
class Options:
    """What a set depends on: the same options give the same bytes.

    Args:
        train (int): Number of training images.
        val (int): Number of validation images.
        size (tuple[int, int]): Width and height of the images in pixels.
        classes (int): Number of classes of things, the first ones of :data:`mini_shapes.THINGS`.
        objects (tuple[int, int]): Fewest and most objects in an image that has any. A thing that finds no place in a
            full scene is left out.
        shares (tuple[float, float, float]): Shares of small, medium and large objects.
        smallest (int): Side of the smallest objects in pixels, as the root of their area.
        empty (float): Share of images without objects.
        crowd (float): Share of images with a crowd region.
        decoys (tuple[int, int]): Fewest and most things of no class in an image. With any, the scene is a search, see
            :mod:`mini_search`, whose objects have a size and classes of their own.
        seed (int): Seed of the whole set.

    Raises:
        ValueError: If a value is out of its range or the options contradict each other.
    """

    train: int = 600
    val: int = 100
    size: tuple[int, int] = (160, 128)
    classes: int = 6
    objects: tuple[int, int] = (1, 4)
    shares: tuple[float, float, float] = (0.15, 0.75, 0.1)
    smallest: int = 20
    empty: float = 0.05
    crowd: float = 0.05
    decoys: tuple[int, int] = (0, 0)
    seed: int = 0

    def __post_init__(self) -> None:
        width, height = self.size
        checks = (
            (self.train > 0, f'--train {self.train}: at least 1 is needed'),
            (self.val > 0, f'--val {self.val}: at least 1 is needed'),
            (min(self.size) >= 64, f'--size {width} {height}: both sides must be at least 64'),
            (1 <= self.classes <= len(THINGS), f'--classes {self.classes}: allowed are 1 to {len(THINGS)}'),
            (
                1 <= self.objects[0] <= self.objects[1],
                f'--objects {self.objects[0]} {self.objects[1]}: allowed are 1 <= MIN <= MAX',
            ),
            (
                min(self.shares) >= 0 and sum(self.shares) > 0,
                f'--shares {self.shares}: allowed are three numbers >= 0, not all of them 0',
            ),
            (
                self.decoys[1] > 0 or self.shares[2] == 0 or width * height >= 1.25 * SIZE_BOUNDS[1] ** 2,
                f'--size {width} {height} has no room for large objects (96 x 96 pixels and '
                'more): set a larger --size, or the last number of --shares to 0',
            ),
            (8 <= self.smallest <= 28, f'--smallest {self.smallest}: allowed are 8 to 28 pixels'),
            (
                min(self.empty, self.crowd) >= 0 and self.empty + self.crowd <= 1,
                f'--empty {self.empty} --crowd {self.crowd}: allowed are shares from 0 to 1 '
                'that together do not exceed 1',
            ),
            (
                0 <= self.decoys[0] <= self.decoys[1],
                f'--decoys {self.decoys[0]} {self.decoys[1]}: allowed are 0 <= MIN <= MAX',
            ),
            (
                self.decoys[1] == 0 or self.classes <= 3,
                f'--classes {self.classes}: beside --decoys there are 3 classes; set 1 to 3',
            ),
            (
                self.decoys[1] == 0
                or (self.shares, self.smallest, self.crowd) == (Options.shares, Options.smallest, Options.crowd),
                '--shares, --smallest and --crowd count for nothing beside --decoys; leave them out',
            ),
            (self.seed >= 0, f'--seed {self.seed}: must not be negative'),
        )
        for passed, message in checks:
            if not passed:
                raise ValueError(message)


@dataclass
class Instance:
    """What is to be seen of one object or crowd: its class and its mask on the fine canvas."""

    thing: ThingClass
    mask: np.ndarray  # (FINE * H, FINE * W), bool
    crowd: bool


@dataclass
class Scene:
    """A picture (H, W, 3) in RGB, its ADE20K labels (H, W), both uint8, its instances, and boxes of decoys."""

    image: np.ndarray
    labels: np.ndarray
    instances: list[Instance]
    decoys: list[tuple[float, float, float, float]] = field(default_factory=list)  # x, y, width, height


@dataclass
class _Placed:
    """A thing on the canvas before painting. ``thing`` is None for what belongs to no class."""

    thing: ThingClass | None
    parts: list[tuple[np.ndarray, np.ndarray]]  # polygon in canvas pixels, colour
    mask: np.ndarray
    area: float  # in canvas pixels, hidden parts included
    foot: tuple[float, float]  # middle of the lower edge, (x, y)
    limits: tuple[float, float]  # least and most visible area in canvas pixels
    flying: bool
    crowd: bool = False


def draw_scene(options: Options, split: int, index: int) -> Scene:
    """Draw one scene.

    Args:
        options (Options): Options of the set.
        split (int): 0 for training, 1 for validation.
        index (int): Index of the image in its split.

    Returns:
        Scene: The scene, which depends on the arguments alone.
    """
    rng = np.random.default_rng((options.seed, split, index))
    width, height = (FINE * side for side in options.size)
    canvas, surfaces = _landscape(rng, height, width)
    placed = _populate(rng, options, surfaces, index)

    light = rng.uniform(0, 2 * np.pi)
    owners = np.full((height, width), -1)
    labels = surfaces.copy()
    for number, item in enumerate(placed):
        _paint(rng, canvas, item, light)
        owners[item.mask] = number
        labels[item.mask] = item.thing.ade_label if item.thing else OTHER

    image = cv2.resize(canvas, options.size, interpolation=cv2.INTER_AREA)
    image = image * rng.uniform(0.86, 1.08, 3) * rng.uniform(0.85, 1.1)
    image += rng.normal(0, rng.uniform(0.005, 0.02), image.shape)
    return Scene(
        image=(image.clip(0, 1) * 255).round().astype(np.uint8),
        labels=to_pixels(labels),
        instances=[
            Instance(item.thing, owners == number, item.crowd) for number, item in enumerate(placed) if item.thing
        ],
    )


def to_pixels(canvas: np.ndarray) -> np.ndarray:
    """Sample a canvas (FINE * H, FINE * W) at the centres of the image's pixels, (H, W)."""
    return np.ascontiguousarray(canvas[FINE // 2 :: FINE, FINE // 2 :: FINE])


# Surfaces


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise of about unit deviation whose grains are ``cell`` = (height, width) canvas pixels."""
    grid = [max(2, round(side / grain) + 2) for side, grain in zip(shape, cell)]
    coarse = rng.standard_normal(grid, dtype=np.float32)
    return 1.3 * cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _line(rng: np.random.Generator, width: int, cell: float) -> np.ndarray:
    """A wavy line, (1, width)."""
    return _noise(rng, (2, width), (2, cell))[:1]


def _hsv(rng: np.random.Generator, *ranges: tuple[float, float]) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(*(rng.uniform(*r) for r in ranges)), dtype=np.float32)


# Hue, saturation and value of each surface in several kinds of weather and season. They overlap.
_COLOURS = {
    'sky': (
        ((0.52, 0.62), (0.25, 0.7), (0.65, 1.0)),
        ((0.0, 0.12), (0.15, 0.5), (0.75, 1.0)),
        ((0.55, 0.85), (0.05, 0.3), (0.45, 0.85)),
    ),
    'mountain': (
        ((0.55, 0.75), (0.1, 0.4), (0.3, 0.65)),
        ((0.05, 0.12), (0.15, 0.5), (0.35, 0.7)),
        ((0.25, 0.42), (0.2, 0.5), (0.2, 0.5)),
    ),
    'grass': (((0.22, 0.36), (0.35, 0.75), (0.35, 0.75)), ((0.11, 0.18), (0.3, 0.6), (0.5, 0.8))),
    'sea': (((0.46, 0.62), (0.3, 0.8), (0.35, 0.8)), ((0.55, 0.7), (0.1, 0.35), (0.35, 0.7))),
    'sand': (((0.08, 0.13), (0.2, 0.5), (0.65, 0.95)), ((0.03, 0.1), (0.1, 0.35), (0.4, 0.75))),
}


def _texture(rng: np.random.Generator, name: str, shape: tuple[int, int], unit: float) -> np.ndarray:
    """A picture (H, W, 3) full of one surface; ``unit`` is the size of its grain in canvas pixels."""
    ranges = _COLOURS[name][rng.integers(len(_COLOURS[name]))]
    first, second = _hsv(rng, *ranges), _hsv(rng, *ranges)
    rows = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]

    def noise(height: float, width: float) -> np.ndarray:
        return _noise(rng, shape, (height * unit, width * unit))

    if name == 'sky':
        clouds = (0.5 * noise(9, 28) + 0.25 * noise(4, 10) - rng.uniform(0, 0.8)).clip(0, 1)[..., None]
        mix = rows[..., None] + np.zeros(shape + (1,), np.float32)
        colour = first * (1 - mix) + second * mix
        return colour + 0.6 * clouds * (rng.uniform(0.85, 1.0) - colour)
    if name == 'mountain':
        rough = noise(14, 9) + 0.5 * noise(6, 4) + 0.25 * noise(3, 2)
        shade = 1 + 1.6 * np.gradient(rough, axis=1) * unit / 3 + 0.06 * noise(1, 1)
        mix = 0.5 + 0.25 * noise(10, 20)
    elif name == 'grass':
        shade = 1 + 0.15 * noise(4, 0.8) + 0.08 * noise(2, 1) + 0.08 * noise(10, 25)
        mix = 0.5 + 0.35 * noise(6, 12)
    elif name == 'sea':
        waves = noise(1.6, 9) + 0.6 * noise(0.9, 4)
        shade = 1 + 0.1 * waves + 0.35 * (waves > 2)
        mix = rows + 0.15 * noise(3, 40)
    else:
        shade = 1 + 0.07 * noise(0.8, 0.8) + 0.07 * noise(5, 40) - 0.3 * (noise(1.5, 1.5) > 2.6)
        mix = 0.5 + 0.3 * noise(12, 30)
    mix = mix.clip(0, 1)[..., None]
    return (first * (1 - mix) + second * mix) * shade[..., None]


def _landscape(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) of a scene without things, and the label of every pixel (H, W)."""
    unit = min(height, width) / 128
    rows = np.arange(height)[:, None]
    horizon = height * rng.uniform(0.25, 0.5)
    grounds = rng.permutation(['grass', 'sea', 'sand'])
    bumps = 0 if grounds[0] == 'sea' else 1.5 * unit
    layers = [('sky', np.ones((height, width), bool))]
    if rng.random() < 0.6:
        rise = height * rng.uniform(0.06, 0.16)
        ridge = rise * (1 + 0.5 * _line(rng, width, 40 * unit) + 0.15 * _line(rng, width, 9 * unit))
        layers.append(('mountain', rows >= horizon - ridge.clip(0)))
    layers.append((grounds[0], rows >= horizon + bumps * _line(rng, width, 30 * unit)))
    if rng.random() < 0.65:
        middle = horizon + (height - horizon) * rng.uniform(0.25, 0.65)
        slope = np.linspace(-1, 1, width) * rng.uniform(-0.12, 0.12) * height
        shore = middle + slope + 3 * unit * _line(rng, width, 25 * unit)
        layers.append((grounds[1], rows >= np.maximum(shore, horizon + 0.08 * height)))

    canvas = np.zeros((height, width, 3), np.float32)
    labels = np.zeros((height, width), np.uint8)
    for name, where in layers:
        # Only the rows that the layer covers, so that vertical ramps run from its top to its end.
        top = int(where.any(axis=1).argmax())
        texture = _texture(rng, name, (height - top, width), unit)
        np.copyto(canvas[top:], texture, where=where[top:, :, None])
        labels[where] = SURFACES[name]
    return canvas, labels


# Things


class _Size(NamedTuple):
    """The root of a thing's area in image pixels: its range when made, and the range of what stays visible.

    ``inside`` is the least share of the thing that the image's edge must leave.
    """

    low: float
    high: float
    least: float
    most: float
    inside: float = 0.8

    def pick(self, rng: np.random.Generator) -> float:
        """A side in canvas pixels, small ones as likely as large ones by ratio."""
        return FINE * np.exp(rng.uniform(np.log(self.low), np.log(self.high)))


def _populate(rng: np.random.Generator, options: Options, surfaces: np.ndarray, index: int) -> list[_Placed]:
    """Put the things of a scene on the canvas, the large ones first; returns them from far to near."""
    classes = THINGS[: options.classes]
    room = np.sqrt(np.prod(options.size))
    small, large = SIZE_BOUNDS
    sizes = (
        _Size(large + 2, max(large + 6, 0.8 * room), large + 1, np.inf, inside=0.65),
        _Size(small + 2, min(large - 4, 0.6 * room), small + 1, large - 1),
        _Size(options.smallest, small - 1, 0.75 * options.smallest, small - 1),
    )
    shares = np.array(options.shares[::-1]) / sum(options.shares)
    placed: list[_Placed] = []
    # Spread evenly by the golden ratio, so that small sets have their shares of both kinds too.
    kind = 0.618034 * (index + 1) % 1
    if options.empty <= kind < options.empty + options.crowd:
        placed = _add_crowd(rng, options, surfaces, classes)
    if kind >= options.empty:
        count = rng.integers(*options.objects, endpoint=True)
        for number in sorted(rng.choice(3, count, p=shares)):
            # Only some classes fit into the image as a large object, so a large one may be of any.
            chosen = classes if number == 0 else (classes[rng.integers(len(classes))],)
            placed = _add(rng, placed, surfaces, chosen, sizes[number])
    for _ in range(rng.integers(4)):
        placed = _add(rng, placed, surfaces, (None,), _Size(4, 0.15 * min(options.size), 0, np.inf))
    return placed


def _add(
    rng: np.random.Generator,
    placed: list[_Placed],
    surfaces: np.ndarray,
    classes: Sequence[ThingClass | None],
    size: _Size,
) -> list[_Placed]:
    """Add a thing where neither it nor those already there are hidden too much, if there is such a place."""
    limits = ((FINE * size.least) ** 2, (FINE * size.most) ** 2)
    for _ in range(TRIES):
        thing, side = classes[rng.integers(len(classes))], size.pick(rng)
        item = _make(rng, thing, side, _pick_foot(rng, placed, surfaces, thing, side), limits, surfaces)
        if np.count_nonzero(item.mask) < size.inside * item.area:
            continue
        order = sorted([*placed, item], key=lambda other: other.foot[1])
        if _all_visible(order):
            return order
    return placed


def _add_crowd(
    rng: np.random.Generator, options: Options, surfaces: np.ndarray, classes: Sequence[ThingClass]
) -> list[_Placed]:
    """A group of many small things of one class, too close together to be told apart one by one."""
    thing = classes[rng.integers(len(classes))]
    side = FINE * rng.uniform(0.09, 0.11) * min(options.size)
    columns, rows = rng.integers(4, 7), rng.integers(2, 4)
    sample = _make(rng, thing, side, (0, 0), (0, np.inf), surfaces)
    size = np.ptp(np.vstack([points for points, _ in sample.parts]), axis=0)
    step_x, step_y = 0.8 * size[0], 0.5 * size[1]
    x, y = _pick_foot(rng, [], surfaces, thing, rows * side)
    half = min(0.5 * columns * step_x, 0.5 * surfaces.shape[1])
    x, y = np.clip(x, half, surfaces.shape[1] - half), np.clip(y, rows * size[1], surfaces.shape[0])
    parts, mask = [], np.zeros(surfaces.shape, bool)
    for row in range(rows):
        for column in range(columns):
            place = (column + 0.5 * (row % 2) + rng.uniform(-0.15, 0.15), rows - 1 - row + rng.uniform(-0.15, 0.15))
            foot = (x - half + step_x * place[0], y - step_y * place[1])
            member = _make(rng, thing, side, foot, (0, np.inf), surfaces)
            parts += member.parts
            mask |= member.mask
    area = float(mask.sum())
    return [_Placed(thing, parts, mask, area, (x, y), (0, np.inf), member.flying, crowd=True)]


def _pick_foot(
    rng: np.random.Generator, placed: list[_Placed], surfaces: np.ndarray, thing: ThingClass | None, side: float
) -> tuple[float, float]:
    """Where a thing stands: next to another, on its kind of surface, or anywhere; large things nearer."""
    height, width = surfaces.shape
    how = rng.random()
    if placed and how < 0.35:
        beside = placed[rng.integers(len(placed))]
        reach = 0.5 * (side + np.sqrt(beside.area))
        return beside.foot[0] + rng.uniform(-1, 1) * reach, beside.foot[1] + rng.uniform(-0.3, 0.3) * reach
    homes = [SURFACES[name] for name in thing.home] if thing and how < 0.85 else list(SURFACES.values())
    spots = np.flatnonzero(np.isin(np.arange(256), homes)[surfaces])
    if len(spots) == 0:
        return rng.uniform(0, width), rng.uniform(0.3, 1) * height
    # The spots are in the order of their rows, so a later one is nearer.
    depth = 0.5 * rng.random() + 0.5 * min(1, side / height * 1.5)
    row = spots[int(depth * (len(spots) - 1))] // width
    y, x = divmod(int(rng.choice(spots[spots // width == row])), width)
    in_sky = surfaces[y, x] == SURFACES['sky']
    return x, y + (side / 2 if in_sky else 0)


def _make(
    rng: np.random.Generator,
    thing: ThingClass | None,
    side: float,
    foot: tuple[float, float],
    limits: tuple[float, float],
    surfaces: np.ndarray,
) -> _Placed:
    """Draw a thing's outline so that it covers ``side ** 2`` canvas pixels and stands on ``foot``."""
    drawn = thing.draw(rng) if thing else rock(rng)
    palette = [_hsv(rng, (0, 1), (0.2, 0.95), (0.35, 1.0)) for _ in range(4)]
    angle = np.deg2rad(rng.uniform(-1, 1) * (thing.tilt if thing else 180))
    stretch = np.diag([rng.choice([-1, 1]) * rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    polygons = [points @ (turn @ stretch).T for points, _ in drawn]
    scale = side / np.sqrt(_area(polygons))
    corners = np.vstack(polygons)
    low, high = corners.min(axis=0), corners.max(axis=0)
    base = np.array([(low[0] + high[0]) / 2, high[1]])
    polygons = [(points - base) * scale + foot for points in polygons]
    mask = np.zeros(surfaces.shape, np.uint8)
    for points in polygons:
        _fill(mask, points, 1)
    colours = [palette[tone] for _, tone in drawn]
    y, x = (int(np.clip(at, 0, end - 1)) for at, end in zip(foot[::-1], surfaces.shape))
    flying = surfaces[y, x] == SURFACES['sky']
    return _Placed(thing, list(zip(polygons, colours)), mask.astype(bool), side**2, foot, limits, flying)


def _fill(picture: np.ndarray, points: np.ndarray, colour: int | tuple[float, ...]) -> None:
    cv2.fillPoly(picture, [points.round().astype(np.int32)], colour)


def _area(polygons: list[np.ndarray], resolution: int = 60) -> float:
    """Area of the union of polygons that lie within a few units of the origin."""
    mask = np.zeros((6 * resolution, 6 * resolution), np.uint8)
    for points in polygons:
        _fill(mask, (points + 3) * resolution, 1)
    return cv2.countNonZero(mask) / resolution**2


def _all_visible(order: list[_Placed]) -> bool:
    """Whether every object keeps enough of itself, those in front of it and the edge considered."""
    hidden = np.zeros(order[0].mask.shape, bool)
    for item in reversed(order):
        if item.thing:
            seen = np.count_nonzero(item.mask & ~hidden)
            if not item.limits[0] <= seen <= item.limits[1] or seen < MIN_VISIBLE * item.area:
                return False
        hidden |= item.mask
    return True


def _paint(rng: np.random.Generator, canvas: np.ndarray, item: _Placed, light: float) -> None:
    """Paint a thing with a shadow at its foot, shaded, patterned and with darker edges."""
    x, y, width, height = cv2.boundingRect(item.mask.astype(np.uint8))
    if width == 0:
        return
    if not item.flying:
        half_width, half_height = round(0.52 * width), round(0.06 * height) + 1
        top = max(0, y + height - 2 * half_height)
        strip = canvas[top : y + height + 2 * half_height]
        shadow = np.zeros(strip.shape[:2], np.float32)
        cv2.ellipse(shadow, (x + width // 2, y + height - top), (half_width, half_height), 0, 0, 360, 0.45, -1)
        strip *= 1 - cv2.blur(shadow, (2 * FINE + 1, FINE))[..., None]

    roi = (slice(y, y + height), slice(x, x + width))
    layer, mask = canvas[roi].copy(), item.mask[roi]
    for points, colour in item.parts:
        outline = (points - (x, y)).round().astype(np.int32)
        cv2.fillPoly(layer, [outline], colour.tolist())
        cv2.polylines(
            layer, [outline], True, (0.45 * colour).tolist(), 1 + (cv2.contourArea(outline) > (10 * FINE) ** 2)
        )
    rows, columns = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)].astype(np.float32) - 0.5
    shade = 1 + 0.35 * (np.cos(light) * columns + np.sin(light) * rows) + 0.05 * _noise(rng, mask.shape, (FINE, FINE))
    pattern = rng.integers(4)
    if pattern:  # stripes, checks, or blotches, on every other thing or more
        period = FINE * rng.uniform(3, 8)
        angle = rng.uniform(0, np.pi)
        along = (np.cos(angle) * columns * width + np.sin(angle) * rows * height) * np.pi / period
        across = (-np.sin(angle) * columns * width + np.cos(angle) * rows * height) * np.pi / period
        wave = (np.sin(along), np.sin(along) * np.sin(across), _noise(rng, mask.shape, (period, period)))[pattern - 1]
        shade = shade * np.where(wave > 0, 1.0, rng.uniform(0.72, 0.9))
    canvas[roi][mask] = (layer * shade[..., None])[mask]
