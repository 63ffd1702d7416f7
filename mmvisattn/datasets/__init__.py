"""A folder of one's own data as settings of the stock datasets: what ``--data FOLDER`` of the tools does."""

from .description import DetectionData, SegmentationData, Split
from .reading import read_detection, read_segmentation

__all__ = ['DetectionData', 'SegmentationData', 'Split', 'read_detection', 'read_segmentation']
