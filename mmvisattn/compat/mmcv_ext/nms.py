"""Non-maximum suppression as ``mmcv._ext`` offers it."""

import numpy as np
import torch
import torchvision
from torch import Tensor

from ._precision import widen

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Keep the boxes that no better box overlaps by more than ``iou_threshold``.

    Args:
        boxes (Tensor): (N, 4) as x1, y1, x2, y2.
        scores (Tensor): (N,).
        iou_threshold (float): Overlap above which the box of the lower score goes.
        offset (int): 0 or 1, added to each width and height (1 where coordinates name pixels).

    Returns:
        Tensor: Indices of the kept boxes in the order of falling score.
    """
    boxes = widen(boxes)
    if offset:
        # Moving the far corner is the same as adding to width and height, in areas and intersections alike.
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # The compiled operator compares in float32, so its 0.3 is a little above 0.3.
    return torchvision.ops.nms(boxes, widen(scores), float(np.float32(iou_threshold)))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapped boxes instead of dropping them (Soft-NMS, arXiv 1704.04503).

    Args:
        boxes (Tensor): (N, 4) as x1, y1, x2, y2, on the CPU.
        scores (Tensor): (N,).
        dets (Tensor): (N, 5) buffer; the first K rows receive boxes and new scores.
        iou_threshold (float): Overlap from which the naive and the linear method act.
        sigma (float): Width of the gaussian method.
        min_score (float): Boxes whose score falls below it are dropped.
        method (int): 0 naive, 1 linear, 2 gaussian.
        offset (int): 0 or 1, added to each width and height.

    Returns:
        Tensor: (K,) indices of the kept boxes in the order in which they were picked.
    """
    float32 = np.float32
    corners = boxes.detach().float().numpy()
    # Rows of (x1, y1, x2, y2, score, area): what moves together when boxes change places.
    table = np.empty((len(corners), 6), float32)
    table[:, :4] = corners
    table[:, 4] = scores.detach().float().numpy()
    table[:, 5] = (corners[:, 2] - corners[:, 0] + offset) * (corners[:, 3] - corners[:, 1] + offset)
    order = np.arange(len(table))
    threshold, variance, least = float32(iou_threshold), float32(sigma), float32(min_score)

    picked, alive = 0, len(table)
    while picked < alive:
        best = picked + int(table[picked:alive, 4].argmax())
        table[[picked, best]] = table[[best, picked]]
        order[[picked, best]] = order[[best, picked]]
        pick = table[picked]
        picked += 1

        rest = table[picked:alive]
        width = np.minimum(pick[2], rest[:, 2]) - np.maximum(pick[0], rest[:, 0]) + offset
        height = np.minimum(pick[3], rest[:, 3]) - np.maximum(pick[1], rest[:, 1]) + offset
        intersection = width.clip(0) * height.clip(0)
        with np.errstate(divide='ignore', invalid='ignore'):
            iou = intersection / (pick[5] + rest[:, 5] - intersection)
        if method == GAUSSIAN:
            rest[:, 4] *= np.exp(-(iou * iou) / variance)
        else:
            factor = 0 if method == NAIVE else 1 - iou
            rest[:, 4] *= np.where(iou >= threshold, factor, 1)

        # A dropped box gives its place to the last one; this decides which of equal scores comes first.
        dropped = rest[:, 4] < least
        left = int((~dropped).sum())
        if left < len(rest):
            holes = picked + np.flatnonzero(dropped[:left])
            movers = picked + left + np.flatnonzero(~dropped[left:])[::-1]
            table[holes], order[holes] = table[movers], order[movers]
            alive = picked + left

    dets[:alive] = torch.from_numpy(table[:alive, :5]).to(dets)
    return torch.from_numpy(order[:alive])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Suppress as NMS does, and remember which box suppressed which.

    Args:
        dets (Tensor): (N, 5) as x1, y1, x2, y2, score, on the CPU.
        iou_threshold (float): Overlap from which the box of the lower score goes.

    Returns:
        A list for each kept box, best first: its own index, then those it suppressed by falling score.
    """
    dets = widen(dets.detach())
    order = dets[:, 4].argsort(descending=True, stable=True).numpy()
    boxes = dets.numpy()[order, :4]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    threshold = boxes.dtype.type(np.float32(iou_threshold))
    waiting = np.ones(len(boxes), bool)
    groups = []
    for i in range(len(boxes)):
        if not waiting[i]:
            continue
        waiting[i] = False
        rest = i + 1 + np.flatnonzero(waiting[i + 1 :])
        low = np.maximum(boxes[i, :2], boxes[rest, :2])
        high = np.minimum(boxes[i, 2:], boxes[rest, 2:])
        intersection = (high - low).clip(0).prod(1)
        with np.errstate(divide='ignore', invalid='ignore'):
            iou = intersection / (area[i] + area[rest] - intersection)
        matched = rest[iou >= threshold]
        waiting[matched] = False
        groups.append(order[[i, *matched]].tolist())
    return groups
