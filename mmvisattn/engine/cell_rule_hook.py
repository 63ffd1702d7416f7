"""Where FlexAttention looks: the objects that its cells meet, their classes, and rules to hold against it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..errors import UserError, nearest
from ..models.layers.selection import Selection
from ..registry import HOOKS
from .cell_networks import find_cell_networks

CELL_RULES = ('relevance', 'chance', 'centre', 'deviation', 'truth')


@HOOKS.register_module()
class CellRuleHook(Hook):
    """Have FlexAttention choose its cells by a rule, and tell how many objects they meet.

    A network that looks where its attention points has to be held against the same network that looks elsewhere. After
    a validation or test of a detector ``cells/recall`` is the share of the boxes whose middle lies in a chosen cell, 0
    of a plain ViT; ``found/class_accuracy`` is, of the boxes that a detection of any class covers with an IoU of 0.5 or
    more, the share of those where the one with the highest score has the right class.

    Args:
        rule (str): ``'relevance'``, the network's own choice; ``'chance'``, one draw for each image and iteration;
            ``'centre'``, the cells next to the middle; ``'deviation'``, those whose pixels differ most from each other;
            ``'truth'``, those that a box of the annotation touches, then others by chance. Defaults to
            ``'relevance'``.

    Raises:
        UserError: If the rule is unknown, or the model has no FlexAttention.
    """

    priority = 'HIGHEST'  # before RuntimeInfoHook hands the metrics on to the logs

    def __init__(self, rule: str = 'relevance') -> None:
        if rule not in CELL_RULES:
            raise UserError(
                f'CellRuleHook: `rule` is {rule!r}{nearest(rule, CELL_RULES)}; set it to one of {CELL_RULES}'
            )
        self.rule = rule
        self.boxes: list[Tensor] = []
        self.met: list[Tensor] = []
        self.right: list[Tensor] = []

    def before_run(self, runner: Runner) -> None:
        """Put the rule before the selector."""
        model, networks = find_cell_networks(runner.model, 'CellRuleHook')
        if networks and self.rule == 'deviation':
            model.backbone.register_forward_pre_hook(self._see)
        for network in networks:
            network.selector.register_forward_hook(partial(self._note, network))
            if self.rule != 'relevance':
                network.selector.register_forward_pre_hook(partial(self._judge, network))
                network.selector.explore = 0.0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Note where the boxes are."""
        samples = (data_batch or {}).get('data_samples', [])
        boxes = [sample.gt_instances.bboxes for sample in samples if 'gt_instances' in sample]
        self.boxes = [getattr(of_image, 'tensor', of_image) for of_image in boxes]

    before_val_iter = before_test_iter = before_train_iter

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin to count."""
        self.met.clear()
        self.right.clear()

    before_test_epoch = before_val_epoch

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Note which of the boxes that were found have the right class."""
        for sample in outputs or ():
            if 'gt_instances' not in sample or not len(sample.pred_instances):
                continue
            truth, found = sample.gt_instances, sample.pred_instances
            boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
            # The boxes of the annotation are in pixels of the network's input, those that were found in the image's.
            boxes = boxes / boxes.new_tensor(sample.get('scale_factor', (1.0, 1.0))).repeat(2)
            covers = box_iou(boxes, found.bboxes) >= 0.5
            scores, best = torch.where(covers, found.scores, -1.0).max(1)
            self.right.append((found.labels[best] == truth.labels)[scores >= 0].cpu())

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add to the metrics the share of boxes that were met, and of those found that have the right class."""
        if self.boxes and metrics is not None:
            metrics['cells/recall'] = torch.cat(self.met).double().mean().item() if self.met else 0.0
        if sum(map(len, self.right)) and metrics is not None:
            metrics['found/class_accuracy'] = torch.cat(self.right).double().mean().item()

    after_test_epoch = after_val_epoch

    def _see(self, backbone: nn.Module, args: tuple[Tensor]) -> None:
        self.images = args[0]

    @torch.compiler.disable  # as CellLossHook does
    def _note(self, network: Any, selector: nn.Module, args: tuple, selection: Selection) -> None:
        if selector.training:
            return
        for chosen, boxes in zip(selection.mask(args[0].shape[1:]), self.boxes):
            middles = ((boxes[:, :2] + boxes[:, 2:]) / 2 / network.size_step).long().to(chosen.device)
            self.met.append(chosen[middles[:, 1], middles[:, 0]].cpu())

    @torch.compiler.disable
    def _judge(self, network: Any, selector: nn.Module, args: tuple[Tensor, Tensor | None]) -> tuple:
        logits, valid = args
        side = network.size_step
        scores = torch.rand_like(logits)
        rows, columns = logits.shape[1:]
        if self.rule == 'centre':
            y, x = (torch.arange(n, device=logits.device).sub((n - 1) / 2).square() for n in (rows, columns))
            scores = 1e-3 * scores - (y[:, None] + x)
        elif self.rule == 'deviation':
            height, width = rows * side, columns * side
            images = F.pad(self.images, (0, width - self.images.shape[3], 0, height - self.images.shape[2]))
            scores = images.unfold(2, side, side).unfold(3, side, side).flatten(4).std(-1).mean(1)
        elif self.rule == 'truth':
            for of_image, boxes in zip(scores, self.boxes):
                for left, top, right, bottom in (boxes / side).tolist():
                    of_image[int(top) : int(bottom) + 1, int(left) : int(right) + 1] += 1
        return scores, valid
