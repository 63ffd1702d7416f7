"""Draw the blocks of the three families as SVG, for docs/architectures.

Example:
    python docs/_ext/draw_blocks.py
"""

from pathlib import Path

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).resolve().parents[1] / 'images'
PLAIN, OWN, DATA = '#e8edf3', '#ffe2b8', '#ffffff'  # what is common, what the paper brings, tensors
HEIGHT, STEP = 0.62, 1.0
plt.rcParams.update({'svg.fonttype': 'path', 'svg.hashsalt': 'mmvisattn', 'font.size': 10})


def box(
    ax: Axes, x: float, y: float, text: str, colour: str = PLAIN, width: float = 2.8, height: float = HEIGHT
) -> None:
    """A box with its centre at (x, y)."""
    style = 'round,pad=0.02,rounding_size=0.12'
    edge = 'none' if colour == DATA else '#5a6572'
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, fc=colour, ec=edge, lw=1))
    ax.text(x, y, text, ha='center', va='center')


def arrow(ax: Axes, *points: tuple[float, float]) -> None:
    """A line through the points with a head at its end."""
    xs, ys = zip(*points)
    ax.plot(xs[:-1], ys[:-1], color='#5a6572', lw=1.2, solid_capstyle='butt')
    ax.annotate(
        '', points[-1], points[-2], arrowprops=dict(arrowstyle='-|>', color='#5a6572', lw=1.2, shrinkA=0, shrinkB=0)
    )


def column(ax: Axes, x: float, top: float, parts: list[tuple[str, str]], width: float = 2.8) -> list[float]:
    """Boxes from top to bottom, joined by arrows; returns the heights of their centres."""
    ys = [top - i * STEP for i in range(len(parts))]
    for y, (text, colour) in zip(ys, parts):
        box(ax, x, y, text, colour, width)
    for above, below in zip(ys, ys[1:]):
        arrow(ax, (x, above - HEIGHT / 2), (x, below + HEIGHT / 2))
    return ys


def skip(ax: Axes, x: float, start: float, end: float, side: float) -> None:
    """A residual connection from below the box at ``start`` into the box at ``end``, around the side."""
    arrow(
        ax,
        (x, start - HEIGHT / 2 - 0.19),
        (side, start - HEIGHT / 2 - 0.19),
        (side, end),
        (x + (1 if side > x else -1) * 0.42, end),
    )


def canvas(width: float, height: float) -> Axes:
    """Axes of one unit a 0.62 inch, without a frame."""
    figure, ax = plt.subplots(figsize=(width * 0.62, height * 0.62))
    ax.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    ax.axis('off')
    figure.subplots_adjust(0, 0, 1, 1)
    return ax


def save(ax: Axes, name: str) -> None:
    """Write ``docs/images/NAME.svg``."""
    ax.figure.savefig(IMAGES / f'{name}.svg', metadata={'Date': None}, facecolor='white')
    plt.close(ax.figure)


def fcvit() -> None:
    """The block, and its token mixer opened."""
    ax = canvas(11.6, 9.6)
    parts = [('map (C, H, W)', DATA), ('GroupNorm', PLAIN), ('token mixer', OWN), ('× layer scale', PLAIN), ('+', DATA)]
    parts += [('GroupNorm', PLAIN), ('channel mixer: 1×1, 3×3, 1×1', PLAIN), ('× layer scale', PLAIN), ('+', DATA)]
    ys = column(ax, 2.6, 9.0, parts, 3.6)
    skip(ax, 2.6, ys[0], ys[4], 0.4)
    skip(ax, 2.6, ys[4], ys[8], 0.4)
    ax.text(8.4, 9.0, 'token mixer', ha='center', va='center', weight='bold')
    inner = [
        ('+ weighted global context', OWN),
        ('11×11, a channel at a time', PLAIN),
        ('1×1 to C/8, GELU, 1×1', PLAIN),
        ('GELU', PLAIN),
    ]
    column(ax, 8.4, 8.2, inner * 2, 4.4)
    ax.plot([4.55, 5.9], [ys[2] + 0.3, 8.5], color='#c98a2b', lw=1, ls='--')
    ax.plot([4.55, 5.9], [ys[2] - 0.3, 0.9], color='#c98a2b', lw=1, ls='--')
    save(ax, 'block_fcvit')


def defocus() -> None:
    """The three mixers side by side; the bandpass filter is what they share."""
    ax = canvas(16.4, 9.4)
    mamba = [
        ('tokens, in order', DATA),
        ('RMSNorm', PLAIN),
        ('linear: u and gate z', PLAIN),
        ('causal conv. of 4, SiLU', PLAIN),
    ]
    mamba += [
        ('B, C turned by their position', OWN),
        ('selective scan: decays', OWN),
        ('RMS in groups, + D u, × SiLU(z)', PLAIN),
        ('linear', PLAIN),
        ('+', DATA),
    ]
    vit = [
        ('tokens, in order', DATA),
        ('LayerNorm', PLAIN),
        ('linear: q, k, v', PLAIN),
        ('q, k turned by their position', OWN),
    ]
    vit += [
        ('logits × decay of the distance', OWN),
        ('softmax over those before', PLAIN),
        ('sum of v', PLAIN),
        ('linear', PLAIN),
        ('+', DATA),
    ]
    retnet = [
        ('tokens, in order', DATA),
        ('LayerNorm', PLAIN),
        ('linear: q, k, v and gate', PLAIN),
        ('q, k turned by their position', OWN),
    ]
    retnet += [
        ('products × decay of the distance', OWN),
        ('sum of v over those before', PLAIN),
        ('norm of each head, × SiLU(gate)', PLAIN),
        ('linear', PLAIN),
        ('+', DATA),
    ]
    for x, title, parts in ((2.9, 'DefocusMamba', mamba), (8.1, 'DefocusViT', vit), (13.3, 'DefocusRetNet', retnet)):
        ax.text(x, 9.1, title, ha='center', va='center', weight='bold')
        ys = column(ax, x, 8.5, parts, 4.1)
        skip(ax, x, ys[0], ys[-1], x - 2.45)
        if title != 'DefocusMamba':
            ax.text(x + 0.4, ys[-1], '… LayerNorm, MLP, +', ha='left', va='center', fontsize=8.5)
    save(ax, 'block_defocus')


def flexattention() -> None:
    """The glance on the left, what is chosen on the right, together below."""
    ax = canvas(12.6, 9.6)
    box(ax, 6.3, 9.1, 'image', DATA)
    box(ax, 2.9, 8.1, 'shrunk by `zoom`', PLAIN, 3.6)
    box(ax, 2.9, 7.1, 'patches and positions', PLAIN, 3.6)
    box(ax, 2.9, 5.5, 'glance: the first layers\non low-resolution tokens', PLAIN, 3.8, 1.1)
    box(ax, 2.9, 3.9, 'learned questions, and a scout on the\nimage: relevance of each cell', OWN, 4.6, 1.1)
    box(ax, 9.4, 3.9 + 3.2, 'patches of the chosen cells', OWN, 4.4)
    box(ax, 9.4, 5.5, 'the same layers, attending to\nkept low-resolution keys and values', OWN, 5.4, 1.1)
    box(
        ax,
        6.3,
        2.3,
        'the other layers, hierarchical: all tokens attend to all,\nwith keys and values W′ of the chosen',
        OWN,
        8.6,
        1.1,
    )
    box(ax, 6.3, 0.7, 'map of stride 16: low resolution upsampled, + norm(chosen)', PLAIN, 10.4)
    arrow(ax, (5.7, 8.85), (2.9, 8.85), (2.9, 8.42))
    arrow(ax, (6.9, 8.85), (9.4, 8.85), (9.4, 7.42))
    arrow(ax, (2.9, 7.78), (2.9, 7.42))
    arrow(ax, (2.9, 6.78), (2.9, 6.06))
    arrow(ax, (2.9, 4.94), (2.9, 4.46))
    arrow(ax, (5.21, 3.9), (5.75, 3.9), (5.75, 7.1), (7.19, 7.1))
    ax.text(5.65, 7.28, 'chosen once', ha='left', va='bottom', fontsize=8.5)
    arrow(ax, (4.81, 5.5), (6.69, 5.5))
    arrow(ax, (9.4, 6.78), (9.4, 6.06))
    arrow(ax, (9.4, 4.94), (9.4, 2.86))
    arrow(ax, (0.99, 5.5), (0.5, 5.5), (0.5, 2.3), (1.99, 2.3))
    arrow(ax, (6.3, 1.74), (6.3, 1.02))
    save(ax, 'block_flexattention')


if __name__ == '__main__':
    fcvit()
    defocus()
    flexattention()
