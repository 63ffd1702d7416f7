"""Curves of a training, from the scalars that mmengine writes into the work directory, as SVG and as tables."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmvisattn.errors import UserError

WIDTH, HEIGHT, MARGIN = 320, 120, 6  # of a drawing, in units of its view box
MOST_POINTS = 200  # of a curve; more are drawn as means of as many neighbours
ROWS = 10  # of the table of a curve
# What a log holds beside curves: where the training stood, and how fast the machine was.
NO_CURVES = {'epoch', 'iter', 'step', 'time', 'data_time', 'memory'}
FIRST = ('loss', 'lr')  # those that are shown before all others


@dataclass
class Curve:
    """A quantity in the course of a training.

    Args:
        name (str): Its key in the logs, such as ``'loss'``.
        unit (str): What is counted along the way: ``'iteration'`` or ``'epoch'``.
        steps (list[float]): Where it was written down, ascending.
        values (list[float]): What it was there; not always finite.
        merged (int): Of how many neighbours each value is the mean; 1 if none.
    """

    name: str
    unit: str
    steps: list[float]
    values: list[float]
    merged: int = 1

    @property
    def finite(self) -> list[tuple[float, float]]:
        """Steps and values without those that cannot be drawn."""
        return [(step, value) for step, value in zip(self.steps, self.values) if math.isfinite(value)]

    @property
    def least(self) -> float:
        """The smallest finite value."""
        return min(value for _, value in self.finite)

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return max(value for _, value in self.finite)

    @property
    def points(self) -> str:
        """The corners of the line, as SVG has them; least and largest value touch the margins."""
        first, last = self.steps[0], self.steps[-1]
        spread = self.largest - self.least
        corners = []
        for step, value in self.finite:
            x = MARGIN + (WIDTH - 2 * MARGIN) * ((step - first) / (last - first) if last > first else 0.5)
            y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * ((value - self.least) / spread if spread else 0.5)
            corners.append(f'{x:.1f},{y:.1f}')
        return ' '.join(corners)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Some of its points, evenly spread, as texts."""
        count = min(ROWS, len(self.steps))
        chosen = [round(i * (len(self.steps) - 1) / max(count - 1, 1)) for i in range(count)]
        return [(f'{self.steps[i]:g}', f'{self.values[i]:.4g}') for i in chosen]


def read_curves(work_dir: Path) -> list[Curve]:
    """The curves of a training, also of one that was stopped and resumed.

    Args:
        work_dir (Path): What ``--work-dir`` of the training was.

    Returns:
        list[Curve]: Loss and learning rate first, then what validations measured, then the rest.

    Raises:
        UserError: If there are no logs.
    """
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))  # their folders are named by the time of the start
    if not files:
        raise UserError(
            f'{str(work_dir)!r} has no logs of a training (TIME/vis_data/scalars.json); give --work-dir of a training'
        )
    points: dict[str, dict[float, float]] = {}
    of_training: set[str] = set()
    by_epoch = False
    for line in _lines(files):
        trained = 'iter' in line
        by_epoch = by_epoch or 'epoch' in line
        for key, value in line.items():
            if key not in NO_CURVES and isinstance(value, int | float):
                # What was done again after a resume replaces what was lost.
                points.setdefault(key, {})[line['step']] = value
                if trained:
                    of_training.add(key)
    curves = []
    for key, values in points.items():
        steps = sorted(values)
        unit = 'epoch' if by_epoch and key not in of_training else 'iteration'
        curve = _thin(Curve(key, unit, steps, [values[step] for step in steps]))
        if curve.finite:
            curves.append(curve)
    places = {name: place for place, name in enumerate(FIRST)}
    return sorted(curves, key=lambda curve: (places.get(curve.name, len(FIRST)), curve.name in of_training))


def _lines(files: Sequence[Path]) -> Iterator[dict]:
    for file in files:
        for text in file.read_text(encoding='utf-8').splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the last one of a training that was killed
                continue
            if 'step' in line:
                yield line


def _thin(curve: Curve) -> Curve:
    size = -(-len(curve.steps) // MOST_POINTS)
    if size == 1:
        return curve
    parts = range(0, len(curve.steps), size)

    def means(values: list[float]) -> list[float]:
        return [sum(values[i : i + size]) / len(values[i : i + size]) for i in parts]

    return Curve(curve.name, curve.unit, means(curve.steps), means(curve.values), size)
