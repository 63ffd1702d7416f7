"""What a network looks at, as pictures small enough for a page: a photograph, and the maps over it layer by layer."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmvisattn.visualization import Look, Map, Recorder, effective_receptive_field
from mmvisattn.visualization.panels import enlarge, fit
from mmvisattn.visualization.recorder import feature_maps
from mmvisattn.visualization.token_fields import sequence_backbones, token_fields

import cv2
import matplotlib
import numpy as np
import torch

from ..subjects import Subject

PHOTO_SIDE, PHOTO_BYTES = 640, 60_000  # longer side in pixels, and the most that a photograph may take
MAP_SIDES = (64, 48, 32, 24, 16, 8)  # longer side of a map in positions; the first at which all fit is taken
MAPS_BYTES = 170_000  # that the maps of a picture may take
CELLS_SIDE = 160  # of maps of cells, whose edges are sharp and which take little
CHANNELS = 4  # strongest channels of a feature map that are shown beside their mean
DECADES = 4  # that are shown of gradients, which are shown as logarithms
# Colours from the least to the largest number, as matplotlib calls them.
PALETTES = {'positive': 'viridis', 'signed': 'coolwarm'}
WHAT = {  # what to call the kinds of a recorder, and those that take gradients
    'similarity': 'similarity to the mean of the map',
    'context': 'what the global context adds',
    'questions': 'answers to the learned questions',
    'cells': 'cells chosen for a close look',
    'features': 'feature maps',
    'over-focus': 'what the last token depends on',
    'field': 'effective receptive field of the middle',
}


@dataclass
class Head:
    """One of the maps of a layer.

    Args:
        name (str): Such as ``'head 3'``.
        palette (str): A key of ``PALETTES``, or ``'cells'``.
        ends (tuple[str, str]): The numbers of the first and the last colour.
        told (str): What the map shows, in words.
    """

    name: str
    palette: str
    ends: tuple[str, str]
    told: str


@dataclass
class Layer:
    """The maps of a place in the network.

    Args:
        what (str): The kind of its maps, one of the values of ``WHAT``.
        name (str): Such as ``'stage 1, block 2, context 1'``.
        heads (list[Head]): Its maps.
        maps (str): All of them below each other, grey from the least to the largest number of each, as a data URI.
    """

    what: str
    name: str
    heads: list[Head]
    maps: str


@dataclass
class View:
    """A picture as the network was given it, or a crop, with the maps over it.

    Args:
        name (str): What to call it.
        photo (str): The picture as a data URI.
        layers (list[Layer]): The maps.
    """

    name: str
    photo: str
    layers: list[Layer]


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address that holds it.

    Args:
        kind (str): Such as ``'jpeg'``.
        content (bytes): The file.
    """
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def photograph(picture: np.ndarray, side: int = PHOTO_SIDE, most: int = PHOTO_BYTES) -> str:
    """A picture as a data URI, made small.

    Args:
        picture (np.ndarray): (H, W, 3), BGR, uint8.
        side (int): Longer side in pixels; smaller pictures stay as they are. Defaults to ``PHOTO_SIDE``.
        most (int): Bytes that it may take, as far as JPEG's quality can help. Defaults to ``PHOTO_BYTES``.
    """
    if max(picture.shape[:2]) > side:
        picture = fit(picture, side)
    content = b''
    for quality in (88, 75, 60, 40, 20):
        content = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(content) <= most:
            break
    return data_uri('jpeg', content)


def palettes() -> dict[str, str]:
    """Name of each palette, and its 256 colours as bytes red, green, blue in base 64."""
    colours = {
        name: np.round(255 * matplotlib.colormaps[map_name](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
        for name, map_name in PALETTES.items()
    }
    return {name: base64.b64encode(values.tobytes()).decode() for name, values in colours.items()}


class Viewer:
    """Shows a network pictures, and brings its maps into the form of the page; ``size`` is that of its first input.

    Args:
        subject (Subject): The network.
        kinds (Sequence[str]): Which of ``WHAT`` to show.

    Raises:
        UserError: If the network has nothing of a kind.
    """

    def __init__(self, subject: Subject, kinds: Sequence[str]) -> None:
        self.subject, self.kinds = subject, kinds
        self.recorder = Recorder(subject.model, [kind for kind in kinds if kind not in ('over-focus', 'field')])
        self.size: tuple[int, ...] = ()

    def __enter__(self) -> 'Viewer':
        return self

    def __exit__(self, *error: object) -> None:
        self.recorder.__exit__(*error)

    def show(self, image: str, name: str) -> tuple[Any, list[View]]:
        """Show the network a picture.

        Args:
            image (str): The file.
            name (str): What to call it.

        Returns:
            tuple[Any, list[View]]: The toolbox's data sample with the prediction, or None of a backbone by itself; and
            the views, several if the model takes the picture crop by crop.
        """
        self.recorder.take()  # what gradients of the last picture made the network look at
        sample = self.subject.show(image)
        looks = self.recorder.take()
        content = None if sample is None else sample.img_shape
        self.size = self.size or tuple(looks[0].image.shape[1:])
        views = []
        for number, look in enumerate(looks, 1):
            view = name if len(looks) == 1 else f'{name}, crop {number} of {len(looks)}'
            picture = self.subject.picture(look.image, content)
            maps = [*look.maps, *self._gradients(look)]
            photo = photograph(picture, most=PHOTO_BYTES // len(looks))
            views.append(View(view, photo, pack_layers(maps, picture.shape[:2], MAPS_BYTES // len(looks))))
        return sample, views

    def _gradients(self, look: Look) -> Iterator[Map]:
        if 'over-focus' in self.kinds:
            (network,) = sequence_backbones(self.subject.model)
            side = network.patch_embed.projection.stride[0]
            for layer, values, share in token_fields(network, look.image):
                spread = f'spread over {share:.1%} of the tokens'
                yield Map('over-focus', layer, spread, _logarithm(values), (side, side))
        if 'field' in self.kinds:
            backbone = self.subject.backbone
            with torch.no_grad():
                levels = len(feature_maps(backbone(look.image[None])))
            for level in range(levels):
                values = effective_receptive_field(backbone, look.image, level).cpu().numpy()
                yield Map('field', f'backbone, level {level}', 'middle', _logarithm(values), (1, 1))


def _logarithm(values: np.ndarray) -> np.ndarray:
    largest = values.max() or 1.0
    return np.log10(np.maximum(values / largest, 10.0**-DECADES))


def pack_layers(maps: Sequence[Map], size: tuple[int, int], most: int) -> list[Layer]:
    """The maps layer by layer, as large as fit into so many bytes.

    Args:
        maps (Sequence[Map]): What a recorder noted.
        size (tuple[int, int]): Height and width of the picture that they lie over, in pixels.
        most (int): Bytes that all may take; more only if they do not fit at the smallest size.
    """
    layers: list[Layer] = []
    for side in MAP_SIDES:
        layers = list(_layers(maps, size, side))
        if sum(len(layer.maps) for layer in layers) * 3 / 4 <= most:  # base 64 has four letters for three bytes
            break
    return layers


def _layers(maps: Sequence[Map], size: tuple[int, int], side: int) -> Iterator[Layer]:
    for kind, name in dict.fromkeys((one.kind, one.layer) for one in maps):
        own = [one for one in maps if (one.kind, one.layer) == (kind, name)]
        if kind == 'features':
            own = channels(own[0])
        heads, grey = [], []
        for one in own:
            palette = 'cells' if kind == 'cells' else 'signed' if is_signed(one) else 'positive'
            heads.append(Head(one.head, palette, tuple(f'{end:.3g}' for end in value_range(one)), tell(one, size)))
            grey.append(_to_grey(one, size, side))
        if kind == 'cells':
            _, content = cv2.imencode('.png', np.vstack(grey), [cv2.IMWRITE_PNG_BILEVEL, 1])
            yield Layer(WHAT[kind], name, heads, data_uri('png', content.tobytes()))
        else:
            _, content = cv2.imencode('.webp', np.vstack(grey), [cv2.IMWRITE_WEBP_QUALITY, 75])
            yield Layer(WHAT[kind], name, heads, data_uri('webp', content.tobytes()))


def is_signed(one: Map) -> bool:
    """Whether zero is the middle of the colours."""
    return one.kind == 'similarity' or one.values.min() < 0 < one.values.max()


def channels(one: Map) -> list[Map]:
    """The mean over the channels of a feature map, and its strongest channels."""
    strength = np.abs(one.values).mean((1, 2))
    chosen = np.argsort(-strength, kind='stable')[:CHANNELS]
    named = [('mean of channels', one.values.mean(0)), *((f'channel {i}', one.values[i]) for i in chosen)]
    return [Map(one.kind, one.layer, head, values, one.cell) for head, values in named]


def value_range(one: Map) -> tuple[float, float]:
    """The numbers of the first and the last colour."""
    low, high = float(one.values.min()), float(one.values.max())
    if is_signed(one):
        high = max(-low, high)
        low = -high
    return low, high


def _to_grey(one: Map, size: tuple[int, int], side: int) -> np.ndarray:
    """A map as (H', W') of uint8, which covers the picture and nothing beside it."""
    side = CELLS_SIDE if one.kind == 'cells' else side
    scale = min(side / max(size), 1.0)
    target = tuple(max(round(length * scale), 1) for length in size)
    cell = tuple(length * new / old for length, new, old in zip(one.cell, target, size))
    if one.kind == 'cells':
        row, column = ((np.arange(n) / length).astype(int) for n, length in zip(target, cell))
        return 255 * one.values[row[:, None], column].astype(np.uint8)
    low, high = value_range(one)
    values = (one.values - low) / (high - low) if high > low else np.full_like(one.values, 0.5)
    values = _shrink(values, cell)
    cell = tuple(length * old / new for length, old, new in zip(cell, one.values.shape, values.shape))
    return np.round(255 * enlarge(values, cell, target)).clip(0, 255).astype(np.uint8)


def _shrink(values: np.ndarray, cell: tuple[float, ...]) -> np.ndarray:
    """Means where a position would be less than a pixel: picking some would show noise."""
    shape = [max(round(n * min(length, 1.0)), 1) for n, length in zip(values.shape, cell)]
    return cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)


def tell(one: Map, size: tuple[int, int]) -> str:
    """What a map shows, for those who do not see it.

    Args:
        one (Map): The map, (rows, columns).
        size (tuple[int, int]): Height and width of the picture that it lies over, in pixels.
    """
    if one.kind == 'cells':
        return f'{one.values.sum()} of {one.values.size} cells are chosen, the others dark'
    rows, columns = (max(min(-int(-n // length), m), 1) for n, length, m in zip(size, one.cell, one.values.shape))
    row, column = np.unravel_index(one.values[:rows, :columns].argmax(), (rows, columns))
    low, high = float(one.values.min()), float(one.values.max())
    if one.kind in ('over-focus', 'field'):
        scale = 'logarithms of the gradient, as a share of the largest, '
    else:
        scale = ''
    left, top = (column + 0.5) / columns, (row + 0.5) / rows
    return (
        f'{scale}from {low:.3g} to {high:.3g}, largest at {left:.0%} of the width from the left and {top:.0%} of the '
        'height from the top'
    )
