import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, nms, nms_match, soft_nms

from tests.compat.mmcv_ext.devices import DEVICES
from tests.golden import load

METHODS = ('naive', 'linear', 'gaussian')


def golden():
    return {name: torch.from_numpy(array) for name, array in load('mmcv_ops').items()}


def random_boxes(count, seed=0, size=60.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 30], 1)
    return boxes, torch.rand(count, generator=generator)


def overlap(a, b, offset):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (sum(area) - width * height)


def reference_nms(boxes, scores, threshold, offset):
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if overlap(boxes[best], boxes[i], offset) <= threshold]
    return kept


def reference_soft_nms(boxes, scores, threshold, sigma, min_score, method):
    """The algorithm box by box: the best goes to the front, a dropped one gives its place to the last."""
    rows = [[i, box, score] for i, (box, score) in enumerate(zip(boxes, scores))]
    front = 0
    while front < len(rows):
        best = max(range(front, len(rows)), key=lambda i: rows[i][2])
        rows[front], rows[best] = rows[best], rows[front]
        place = front + 1
        while place < len(rows):
            iou = overlap(rows[front][1], rows[place][1], 0)
            if method == 'gaussian':
                rows[place][2] *= np.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                rows[place][2] *= 0 if method == 'naive' else 1 - iou
            if rows[place][2] < min_score:
                rows[place] = rows[-1]
                rows.pop()
            else:
                place += 1
        front += 1
    return [row[0] for row in rows], [row[2] for row in rows]


class TestGolden:
    @pytest.mark.parametrize('device', DEVICES)
    @pytest.mark.parametrize('offset', [0, 1])
    def test_nms(self, offset, device):
        data = golden()
        dets, inds = nms(data['nms_boxes'].to(device), data['nms_scores'].to(device), 0.5, offset=offset)
        assert torch.equal(inds.cpu(), data[f'nms_off{offset}_inds'])
        assert torch.equal(dets.cpu(), data[f'nms_off{offset}_dets'])

    def test_nms_score_threshold_and_max_num(self):
        data = golden()
        dets, inds = nms(data['nms_boxes'], data['nms_scores'], 0.5, score_threshold=0.3, max_num=20)
        assert torch.equal(inds, data['nms_thr_inds'])
        assert torch.equal(dets, data['nms_thr_dets'])

    @pytest.mark.parametrize('method', METHODS)
    def test_soft_nms(self, method):
        data = golden()
        dets, inds = soft_nms(data['nms_boxes'], data['nms_scores'], 0.3, 0.5, 1e-3, method)
        assert torch.equal(inds, data[f'softnms_{method}_inds'])
        torch.testing.assert_close(dets, data[f'softnms_{method}_dets'], rtol=1e-6, atol=1e-6)

    def test_batched_nms(self):
        data = golden()
        config = dict(type='nms', iou_threshold=0.5)
        dets, inds = batched_nms(data['nms_boxes'], data['nms_scores'], data['nms_cls'], config)
        assert torch.equal(inds, data['batched_nms_inds'])
        assert torch.equal(dets, data['batched_nms_dets'])

    def test_nms_match(self):
        data = golden()
        groups = nms_match(torch.cat([data['nms_boxes'], data['nms_scores'][:, None]], 1), 0.5)
        assert [int(group[0]) for group in groups] == data['nms_match_first'].tolist()
        assert [len(group) for group in groups] == data['nms_match_len'].tolist()


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.7])
def test_nms_equals_reference(threshold, offset):
    boxes, scores = random_boxes(80, size=8.0)
    _, inds = nms(boxes, scores, threshold, offset=offset)
    kept = reference_nms(boxes.tolist(), scores.tolist(), threshold, offset)
    assert 1 < len(kept) < len(boxes)
    assert inds.tolist() == kept


@pytest.mark.parametrize('method', METHODS)
def test_soft_nms_equals_reference(method):
    boxes, scores = random_boxes(60, seed=1)
    dets, inds = soft_nms(boxes, scores, 0.3, 0.5, 0.05, method)
    kept, new_scores = reference_soft_nms(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method)
    assert inds.tolist() == kept
    assert torch.equal(dets[:, :4], boxes[inds])
    torch.testing.assert_close(dets[:, 4].double(), torch.tensor(new_scores, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_soft_nms_order_of_equal_scores():
    # Many zeros after the naive method, dropped boxes between them: the order is that of the exchanges.
    boxes, scores = random_boxes(40, seed=2, size=20.0)
    scores = (scores * 4).round() / 4
    for min_score in (0.0, 0.3):
        _, inds = soft_nms(boxes, scores, 0.2, 0.5, min_score, 'naive')
        kept, _ = reference_soft_nms(boxes.tolist(), scores.tolist(), 0.2, 0.5, min_score, 'naive')
        assert inds.tolist() == kept


def test_threshold_is_compared_in_float32():
    # Two boxes with an overlap of 3/10, which is 0.3 in float32 and above 0.3 in float64.
    boxes = torch.tensor([[0.0, 0, 10, 1], [7, 0, 10, 1]])
    _, inds = nms(boxes, torch.tensor([0.9, 0.8]), 0.3)
    assert inds.tolist() == [0, 1]


def test_nms_match_groups_everything_once():
    boxes, scores = random_boxes(50, seed=3)
    groups = nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
    assert sorted(int(i) for group in groups for i in group) == list(range(50))
    for group in groups:
        first, *others = group.tolist()
        assert all(overlap(boxes[first].tolist(), boxes[i].tolist(), 0) >= 0.4 - 1e-6 for i in others)
        assert scores[group].tolist() == sorted(scores[group].tolist(), reverse=True)


def test_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    dets, inds = nms(boxes, scores, 0.5)
    assert dets.shape == (0, 5) and inds.shape == (0,) and inds.dtype == torch.int64
    for method in METHODS:
        dets, inds = soft_nms(boxes, scores, method=method)
        assert dets.shape == (0, 5) and inds.shape == (0,)
    assert nms_match(torch.zeros(0, 5), 0.5) == []


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    boxes, scores = random_boxes(30, seed=4)
    boxes, scores = boxes.round().to(dtype), scores.to(dtype)
    kept = reference_nms(boxes.tolist(), scores.tolist(), 0.5, 0)
    dets, inds = nms(boxes, scores, 0.5)
    assert dets.dtype == dtype
    assert torch.equal(scores[inds], scores[kept])
    dets, _ = soft_nms(boxes, scores, 0.5)
    assert dets.dtype == dtype


def test_boxes_that_need_a_gradient():
    boxes, scores = random_boxes(10)
    dets, _ = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    dets.sum().backward()
    assert boxes.grad is not None and scores.grad is not None
    dets, _ = soft_nms(boxes, scores)
    assert len(dets)
