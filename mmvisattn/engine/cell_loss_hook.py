"""Teach FlexAttention where to look by what there is to see."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UserError
from ..registry import HOOKS
from .cell_networks import find_cell_networks

IGNORED = 255  # the label of mmseg's pixels that count for no class


@HOOKS.register_module()
class CellLossHook(Hook):
    """Add ``loss_cells``, by which FlexAttention learns which cells are worth a close look, to the losses of the model.

    It is the binary cross entropy between the relevance of the cells and what the labels say of them, the mean over
    all cells of the images. Of a detector a cell that a box touches is worth a look, the less the larger the box, since
    much of a large object shows in the low resolution: its target is the side of a cell over the longer side of the
    box, 1 at most. Of a segmentor the target is the share of a cell's pixels that are not of its commonest class.

    With ``labels_first`` the cells that the labels point to are taken first in training, as far as the budget goes, and
    then those of the highest relevance, so that the layers behind learn what objects look like from near before the
    choice finds them.
    Validation and test go by relevance alone. Without this hook the choice learns by how much the cells that were
    chosen have helped. Of several FlexViTs and FlexAttentionNecks in a model each learns, and the loss is their mean.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.
        labels_first (bool): Whether in training the cells that the labels point to are taken first. False for a
            FlexAttentionNeck, whose heads see the fine level where it was not chosen too, and would learn that what was
            chosen is an object. Defaults to True.

    Raises:
        UserError: If the weight is not positive, or the model has no FlexAttention, or neither boxes nor a map of
            labels to learn from.
    """

    def __init__(self, loss_weight: float = 1.0, labels_first: bool = True) -> None:
        if not loss_weight > 0:
            raise UserError(
                f'CellLossHook: `loss_weight` is {loss_weight}; set it to a number above 0, or leave the hook out'
            )
        self.loss_weight, self.labels_first = loss_weight, labels_first
        self.samples: Sequence[Any] | None = None
        self.losses: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Have the model's own ``loss`` followed by ours."""
        model, networks = find_cell_networks(runner.model, 'CellLossHook')
        for network in networks:
            # Before the rules of CellRuleHook, which put others' choice in its place.
            network.selector.register_forward_pre_hook(partial(self._teach, network), prepend=True)
        if networks:
            self.inner = model.loss
            model.loss = self.loss

    def loss(self, inputs: Tensor, data_samples: Any, **kwargs: Any) -> dict:
        """The losses of the model, and ours.

        Args:
            inputs (Tensor): Images of a batch, (B, in_channels, H, W).
            data_samples (list): One ``DetDataSample`` or ``SegDataSample`` an image.
            **kwargs (Any): What else the model takes.
        """
        self.samples, self.losses = data_samples, []
        losses = self.inner(inputs, data_samples, **kwargs)
        self.samples = None
        return {**losses, 'loss_cells': self.loss_weight * torch.stack(self.losses).mean()}

    @torch.compiler.disable  # else there is a graph for each number of boxes
    def _teach(self, network: Any, selector: nn.Module, args: tuple[Tensor, Tensor | None]) -> tuple:
        if self.samples is None:  # not in training
            return args
        logits, valid = args
        shape = logits.shape[1], logits.shape[2]
        worth = torch.stack([cell_targets(sample, shape, network.size_step) for sample in self.samples]).to(logits)
        real = logits.isfinite()
        self.losses.append(F.binary_cross_entropy_with_logits(logits[real], worth[real]))
        return (logits + 1e4 * worth, valid) if selector.training and self.labels_first else args


def cell_targets(sample: Any, shape: tuple[int, int], side: int) -> Tensor:
    """How much each cell is worth a close look, as :class:`CellLossHook` says, from 0 to 1, (rows, columns).

    Args:
        sample (DetDataSample | SegDataSample): What the labels say of an image.
        shape (tuple[int, int]): Rows and columns of cells.
        side (int): Side of a cell in pixels.

    Raises:
        UserError: If there are neither boxes nor a map of labels.
    """
    if 'gt_instances' in sample and 'bboxes' in sample.gt_instances:
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes).float() / side  # in cells
        worth = 1 / (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1)  # (N,)
        spans = []
        for axis, count in ((1, shape[0]), (0, shape[1])):
            edge = torch.arange(count, device=boxes.device)
            spans.append((edge < boxes[:, 2 + axis, None]) & (edge + 1 > boxes[:, axis, None]))  # (N, count)
        touched = spans[0][:, :, None] & spans[1][:, None]  # (N, rows, columns)
        return torch.cat([worth.new_zeros(1, *shape), touched * worth[:, None, None]]).amax(0)
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data[0].long()
        height, width = (count * side for count in shape)
        labels = F.pad(labels, (0, width - labels.shape[1], 0, height - labels.shape[0]), value=IGNORED)
        cells = labels.unflatten(1, (-1, side)).unflatten(0, (-1, side)).permute(0, 2, 1, 3).flatten(2)
        counts = labels.new_zeros(*shape, IGNORED + 1).scatter_add(2, cells, torch.ones_like(cells))[..., :IGNORED]
        return (counts.sum(-1) - counts.amax(-1)) / side**2
    raise UserError(
        'CellLossHook: the model has neither boxes (`gt_instances`) nor a map of labels (`gt_sem_seg`) to learn from; '
        'take the hook out of `custom_hooks`'
    )
