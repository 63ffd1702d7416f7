import json

import pytest
import torch
from torch import nn

from tools.analysis import training_step as tool


@pytest.mark.parametrize(
    ('config', 'parts'),
    [('det_config', ['backbone', 'neck', 'bbox_head']), ('seg_config', ['backbone', 'neck', 'decode_head'])],
)
def test_parts_of_a_step(config, parts, request, tmp_path, capsys):
    file = tmp_path / 'report.json'
    path = request.getfixturevalue(config)
    tool.main([str(path), '--batch', '2', '--rounds', '2', '--device', 'cpu', '--clock', 'cpu', '--json', str(file)])
    (table,) = json.loads(file.read_text())['tables']
    rows = {name: cells for name, *cells in table['rows']}
    assert list(rows) == ['data', *parts, 'other', 'optimizer']
    assert all(rows[part][1] != '–' for part in parts) and rows['data'][1] == rows['optimizer'][1] == '–'
    shares = [int(cells[-1].removesuffix('%')) for cells in rows.values()]
    assert 90 <= sum(shares) <= 110  # rounded, and of medians


class Clock:
    """Stands still but for the operators that take time."""

    time = 0

    def __call__(self):
        return self.time


class Slow(torch.autograd.Function):
    """Takes so long, forward and backward."""

    @staticmethod
    def forward(ctx, x, clock, forward, backward):
        clock.time += forward
        ctx.clock, ctx.backward_time = clock, backward
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.clock.time += ctx.backward_time
        return grad, None, None, None


class Part(nn.Module):
    def __init__(self, clock, forward, backward):
        super().__init__()
        self.clock, self.times = clock, (forward, backward)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, maps):
        return [Slow.apply(x * self.weight, self.clock, *self.times) for x in maps]


class Head(Part):
    def loss(self, maps, samples):
        return self(maps)[0].sum()


class Model(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.backbone, self.neck = Part(clock, 1, 5), Part(clock, 2, 3)
        self.rpn_head, self.roi_head = Head(clock, 0, 4), Head(clock, 3, 7)
        self.auxiliary_head = nn.ModuleList([Head(clock, 1, 2)])

    def forward(self, images):
        maps = self.neck(maps=self.backbone([images]))
        loss = self.rpn_head.loss(maps, None) + self.roi_head.loss(maps, samples=None)
        return loss + self.auxiliary_head[0].loss(maps, None)


def test_the_time_of_each_part_is_its_own():
    clock = Clock()
    model = Model(clock)
    parts = tool.Parts(model, clock)
    loss = model(torch.ones(3))
    assert parts.forward == {'backbone': 1, 'neck': 2, 'rpn_head': 0, 'roi_head': 3, 'auxiliary_head.0': 1}
    start = clock.time
    loss.backward()
    expected = {'backbone': 5, 'neck': 3, 'rpn_head': 4, 'roi_head': 7, 'auxiliary_head.0': 2}
    assert parts.backward(start, clock.time) == expected
    assert all(parameter.grad is not None for parameter in model.parameters())
