"""The page itself: one file of HTML with everything in it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2  # torch brings it

from .curves import HEIGHT, WIDTH, Curve
from .maps import View, palettes
from .scores import Table

FOLDER = Path(__file__).parent
SHOWN_CURVES = 6  # the others are folded


@dataclass
class Picture:
    """A picture with what the model says about it.

    Args:
        name (str): What to call it.
        score (str): How prediction and truth agree, or nothing.
        view (int): Number of its first view, from 0.
        drawn (list[tuple[str, str, str]]): Pictures beside each other: title, data URI, and what is in it.
    """

    name: str
    score: str
    view: int
    drawn: list[tuple[str, str, str]]


@dataclass
class Page:
    """What is on the page.

    Args:
        title (str): The network.
        summary (Table): The facts that come first.
        results (list[Table]): What was measured over the pictures.
        pictures (list[Picture]): Predictions, the worst first.
        order (str): In which order the pictures are, and of how many.
        views (list[View]): What the network looks at.
        curves (list[Curve]): Those of the training.
        curves_from (str): Where they come from, or why there are none.
        costs (Table): Parameters and FLOPs by part.
        origin (str): The command.
        speed (list[Table]): How long the network takes, if asked for.
    """

    title: str
    summary: Table
    results: list[Table]
    pictures: list[Picture]
    order: str
    views: list[View]
    curves: list[Curve]
    curves_from: str
    costs: Table
    origin: str
    speed: list[Table] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML, which loads nothing from elsewhere.

    Args:
        page (Page): What is on it.
    """
    # What names of files, classes and layers hold is text: it is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        include=lambda name: (FOLDER / name).read_text(encoding='utf-8'),
        curve_size=(WIDTH, HEIGHT),
        shown_curves=SHOWN_CURVES,
    )
    data = dict(palettes=palettes(), views=[asdict(view) for view in page.views])
    return environment.get_template('page.html').render(page=page, data=data).lstrip()


def table_of(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = '') -> Table:
    """A table of anything that can be written as text."""
    return Table(caption, list(columns), [[str(cell) for cell in row] for row in rows], note)
