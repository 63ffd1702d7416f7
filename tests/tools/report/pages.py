"""Writing a page about a model, and reading the maps in it."""

from pathlib import Path

import cv2
import numpy as np

from tools.analysis.report_page import maps

from ..utils import run_tool

STOCK = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
PAGES = ['detector', 'segmentor', 'stock', 'flex']
PAGE = 'report.html'
SELECTS = ['view', 'what', 'layer', 'head']


def write(folder: Path, *args: object) -> Path:
    path = folder / PAGE
    run_tool('analysis/report', *args, '--out', path, '--device', 'cpu')
    return path


def decode(uri: str) -> np.ndarray:
    content = np.frombuffer(maps.base64.b64decode(uri.partition(',')[2]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
