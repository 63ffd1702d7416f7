"""A trained detector or segmentor on pictures of any size, and its results as files."""

from .memory import check_labels_fit
from .results import CocoResults, save_labels
from .slicing import Prediction, predict_sliced

__all__ = ['CocoResults', 'Prediction', 'check_labels_fit', 'predict_sliced', 'save_labels']
