"""Rules to choose the cells of a network with FlexAttention by, against which its own choice is to be held.

A hook of mmengine, so that a study trains and tests by any rule with nothing but ``--cfg-options``: it puts scores of
its own before the selector, whatever the network finds relevant.
"""

from mmvisattn.registry import HOOKS

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

RULES = ('chance', 'centre', 'deviation', 'truth')


@HOOKS.register_module()
class ChooseByRule(Hook):
    """Choose the cells of FlexViT by a rule, in training and tests.

    Args:
        rule (str): ``'chance'`` draws anew in each forward; ``'centre'`` takes those next to the middle;
            ``'deviation'`` those whose pixels differ most from each other; ``'truth'`` those that hold a box, then
            others by chance.
    """

    def __init__(self, rule: str) -> None:
        assert rule in RULES, rule
        self.rule = rule
        self.boxes: list[Tensor] = []

    def before_run(self, runner: Runner) -> None:
        """Put the rule before the selector."""
        network = runner.model.backbone
        self.side = network.cell_size * network.zoom * network.patch_size
        network.register_forward_pre_hook(self._see)
        network.selector.register_forward_pre_hook(self._judge)
        network.selector.explore = 0.0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Note where the boxes are."""
        assert data_batch is not None
        boxes = [sample.gt_instances.bboxes for sample in data_batch['data_samples']]
        self.boxes = [getattr(of_image, 'tensor', of_image) for of_image in boxes]

    before_val_iter = before_test_iter = before_train_iter

    def _see(self, module: torch.nn.Module, args: tuple[Tensor]) -> None:
        self.images = args[0]

    def _judge(self, module: torch.nn.Module, args: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        logits, valid = args
        scores = torch.rand_like(logits)
        rows, columns = logits.shape[1:]
        if self.rule == 'centre':
            y, x = (torch.arange(n).sub((n - 1) / 2).square() for n in (rows, columns))
            scores = scores * 1e-3 - (y[:, None] + x)
        elif self.rule == 'deviation':
            size = rows * self.side, columns * self.side
            images = F.pad(self.images, (0, size[1] - self.images.shape[3], 0, size[0] - self.images.shape[2]))
            scores = images.unfold(2, self.side, self.side).unfold(3, self.side, self.side).flatten(4).std(-1).mean(1)
        elif self.rule == 'truth':
            for of_image, boxes in zip(scores, self.boxes):
                for left, top, right, bottom in boxes.tolist():
                    columns_of = slice(int(left // self.side), int(max(right - 1e-3, 0) // self.side) + 1)
                    of_image[int(top // self.side) : int(max(bottom - 1e-3, 0) // self.side) + 1, columns_of] += 1
        return scores, valid
