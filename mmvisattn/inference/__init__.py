"""A trained detector or segmentor on pictures of any size, and its results as files."""

from .results import CocoResults, save_labels
from .slicing import Prediction, predict_sliced

__all__ = ['CocoResults', 'Prediction', 'predict_sliced', 'save_labels']
