from types import SimpleNamespace

from mmvisattn.engine import CellLossHook, CellRuleHook
from mmvisattn.engine.cell_loss_hook import cell_targets
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

SMALL = dict(embed_dims=24, depth=3, num_heads=3, mlp_ratio=2)


class Detector(nn.Module):
    """A backbone, and a loss of its map."""

    def __init__(self, **settings) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = FlexViT(SMALL, patch_size=8, pretrain_size=64, cell_size=1, select_ratio=0.1, **settings)
        self.backbone.init_weights()

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict[str, torch.Tensor]:
        return dict(loss_map=self.backbone(inputs)[0].square().mean())


def boxes_of(*boxes: list[float]) -> BaseDataElement:
    return BaseDataElement(gt_instances=InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4)))


def taught(model: nn.Module, *others) -> nn.Module:
    runner = SimpleNamespace(model=model)
    for hook in (*others, CellLossHook()):
        hook.before_run(runner)
        hook.before_train(runner)
    return model


def chosen_in(model: Detector, shape: tuple[int, int]) -> list[torch.Tensor]:
    """Filled with the cells that are chosen from now on."""
    seen = []
    model.backbone.selector.register_forward_hook(lambda module, args, selection: seen.append(selection.mask(shape)))
    return seen


# What the labels say of a cell.


def test_cells_that_boxes_touch_are_worth_a_look_the_less_the_larger_the_box():
    sample = boxes_of([4, 4, 12, 8], [30, 17, 35, 31], [0, 32, 48, 48], [16, 16, 32, 32])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(cell_targets(sample, (3, 3), 16), expected)
    assert not cell_targets(boxes_of(), (2, 3), 16).any()


def test_cells_of_several_classes_are_worth_a_look_by_what_is_not_of_the_commonest():
    labels = torch.zeros(1, 6, 8, dtype=torch.uint8)  # cells of 4 pixels; the last row of them is half padding
    labels[0, :2, :2] = 3
    labels[0, 0, 4:8] = torch.tensor([1, 2, 255, 255])
    labels[0, 4:, :4] = 255
    labels[0, 4:, 4:] = 7
    sample = BaseDataElement(gt_sem_seg=PixelData(data=labels))
    torch.testing.assert_close(cell_targets(sample, (2, 2), 4), torch.tensor([[4 / 16, 2 / 16], [0.0, 0.0]]))


def test_without_labels_it_says_what_is_missing():
    with pytest.raises(UserError, match='neither boxes .* nor a map of labels'):
        cell_targets(BaseDataElement(), (2, 2), 4)


# The loss.


def test_the_loss_is_the_cross_entropy_of_the_cells_of_the_images():
    model = taught(Detector())
    images = torch.zeros(2, 3, 64, 96)
    images[0] = torch.randn(3, 64, 96)
    images[1, :, :48, :64] = torch.randn(3, 48, 64)  # cells (0…2, 0…3); the others are padding
    logits = []
    model.backbone.relevance.register_forward_hook(lambda module, args, out: logits.append(out))
    losses = model.loss(images, [boxes_of([20, 20, 28, 28]), boxes_of()])
    targets = torch.zeros(2, 4, 6)
    targets[0, 1, 1] = 1
    real = torch.cat([logits[0][0].flatten(), logits[0][1, :3, :4].flatten()])
    wanted = torch.cat([targets[0].flatten(), targets[1, :3, :4].flatten()])
    torch.testing.assert_close(losses['loss_cells'], F.binary_cross_entropy_with_logits(real, wanted))
    assert set(losses) == {'loss_map', 'loss_cells'}
    losses['loss_cells'].backward()
    grads = {name: p.grad for name, p in model.backbone.relevance.named_parameters()}
    assert all(grad is not None and grad.any() for grad in grads.values())


def test_it_learns_where_things_are():
    model = taught(Detector())
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def scenes(count: int) -> tuple[torch.Tensor, list, torch.Tensor]:
        images = torch.randn(count, 3, 64, 64)
        cells = torch.randint(4, (count, 2))
        places = 16 * cells + torch.randint(3, 11, (count, 2))
        for image, (row, column) in zip(images, places):
            image[:, row : row + 3, column : column + 3] += 3
        boxes = [boxes_of([float(column), float(row), column + 3.0, row + 3.0]) for row, column in places]
        return images, boxes, cells

    for _ in range(60):
        images, boxes, _ = scenes(16)
        loss = model.loss(images, boxes)['loss_cells']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen = chosen_in(model.eval(), (4, 4))
    images, _, cells = scenes(64)
    with torch.no_grad():
        model.backbone(images)
    met = seen[0][torch.arange(64), cells[:, 0], cells[:, 1]].double().mean()
    assert met > 0.8  # two cells of 16: 0.125 by chance


# The choice in training.


def test_in_training_what_the_labels_point_to_is_taken_first():
    model = taught(Detector(select_explore=0.0))
    images, sample = torch.randn(1, 3, 128, 128), boxes_of([100, 100, 110, 110], [0, 5, 4, 9])
    seen = chosen_in(model, (8, 8))
    model.train().loss(images, [sample])
    assert seen[-1][0, 6, 6] and seen[-1][0, 0, 0] and seen[-1].sum() == 6
    model.eval()
    model.loss(images, [sample])
    with torch.no_grad():
        model.backbone(images)
    assert torch.equal(seen[-1], seen[-2])


def test_a_rule_has_the_last_word():
    model = taught(Detector(), CellRuleHook('centre'))
    seen = chosen_in(model, (8, 8))
    model.train().loss(torch.randn(1, 3, 128, 128), [boxes_of([100, 100, 110, 110])])
    assert seen[0][0, 3:5, 3:5].all() and not seen[0][0, 6, 6]


# Where it may be used.


def test_what_cannot_be_taught_is_told():
    with pytest.raises(UserError, match='backbone is Conv2d'):
        taught(SimpleNamespace(backbone=nn.Conv2d(3, 3, 3)))
    with pytest.raises(UserError, match='`loss_weight` is 0'):
        CellLossHook(0)


def test_a_plain_vit_goes_on_as_it_is():
    model = Detector(num_glance_layers=3, out_indices=(1,))
    assert set(taught(model).loss(torch.randn(1, 3, 32, 32), [boxes_of()])) == {'loss_map'}
