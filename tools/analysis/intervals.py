"""How sure a mean over trainings is."""

from collections.abc import Sequence
from statistics import stdev

from scipy.stats import t


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t.

    Args:
        values (Sequence[float]): One of each training, two at least.
    """
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
