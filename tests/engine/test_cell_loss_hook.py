from types import SimpleNamespace

from mmvisattn.engine import CellLossHook, CellRuleHook
from mmvisattn.engine.cell_loss_hook import cell_targets
from mmvisattn.engine.compile_hook import compile_parts
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.necks import FlexAttentionNeck

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn
from torch._dynamo.testing import CompileCounter

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


class Pyramid(nn.Module):
    """Maps of strides 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 24, side, side) for side in (4, 8, 16))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        size = images.shape[2:]
        images = F.pad(images, (0, -size[1] % 16, 0, -size[0] % 16))
        return [
            conv(images)[:, :, : -(-size[0] // side), : -(-size[1] // side)]
            for conv, side in zip(self.convs, (4, 8, 16))
        ]


class DetectorWithNecks(nn.Module):
    """A pyramid, two necks over it, as ``neck=[…]`` of a config, and a loss of their maps."""

    def __init__(self, **settings) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Pyramid()
        necks = [dict(low_level=2, high_level=0), dict(low_level=2, high_level=1, cell_size=2)]
        self.neck = nn.Sequential(*(FlexAttentionNeck(24, num_heads=3, **levels, **settings) for levels in necks))

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict[str, torch.Tensor]:
        return dict(loss_map=sum(out.square().mean() for out in self.neck(self.backbone(inputs))))


def boxes_of(*boxes: list[float]) -> BaseDataElement:
    return BaseDataElement(gt_instances=InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4)))


def taught(model: nn.Module, *others, **options) -> nn.Module:
    runner = SimpleNamespace(model=model)
    for hook in (*others, CellLossHook(**options)):
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


def test_without_labels_first_the_choice_is_that_of_the_network():
    images, samples = torch.randn(1, 3, 128, 128), [boxes_of([100, 100, 110, 110])]
    taken = []
    for model in (Detector(select_explore=0.0), taught(Detector(select_explore=0.0), labels_first=False)):
        seen = chosen_in(model, (8, 8))
        taken.append(model.train().loss(images, samples))
        taken[-1]['chosen'] = seen[0]
    assert torch.equal(taken[0]['chosen'], taken[1]['chosen']) and taken[1]['loss_cells'].requires_grad


def test_a_rule_has_the_last_word():
    model = taught(Detector(), CellRuleHook('centre'))
    seen = chosen_in(model, (8, 8))
    model.train().loss(torch.randn(1, 3, 128, 128), [boxes_of([100, 100, 110, 110])])
    assert seen[0][0, 3:5, 3:5].all() and not seen[0][0, 6, 6]


# With necks.


def test_necks_learn_from_the_cells_that_they_have():
    model = taught(DetectorWithNecks(select_ratio=0.1))
    images = torch.zeros(2, 3, 70, 100)  # cells of 16 pixels, 5×7, and of 32, 3×4
    images[0] = torch.randn(3, 70, 100)
    images[1, :, :48, :60] = torch.randn(3, 48, 60)
    seen = []
    for neck in model.neck:
        neck.selector.register_forward_pre_hook(lambda module, args: seen.append(args[0]), prepend=True)
    samples = [boxes_of([20, 20, 28, 28]), boxes_of()]
    losses = model.loss(images, samples)
    wanted = []
    for logits, side, rows, columns in zip(seen, (16, 32), (3, 2), (4, 2)):
        targets = torch.zeros_like(logits)
        targets[0, 20 // side, 20 // side] = 1
        pairs = [(x[0], x[1, :rows, :columns]) for x in (logits, targets)]
        wanted.append(F.binary_cross_entropy_with_logits(*(torch.cat([a.flatten(), b.flatten()]) for a, b in pairs)))
    torch.testing.assert_close(losses['loss_cells'], sum(wanted) / 2)
    losses['loss_cells'].backward()
    for neck in model.neck:
        grads = [p.grad for p in neck.relevance.parameters()]
        assert all(grad is not None and grad.any() for grad in grads)


def test_with_the_loss_of_the_map_alone_the_choice_of_necks_gets_gradients_too():
    model = DetectorWithNecks(select_ratio=0.1)
    model.loss(torch.randn(2, 3, 64, 96), [])['loss_map'].backward()
    assert [n for n, p in model.neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_in_training_necks_take_first_what_the_labels_point_to():
    model = taught(DetectorWithNecks(select_ratio=0.1, select_explore=0.0))
    masks = []
    for neck, shape in zip(model.neck, [(8, 8), (4, 4)]):
        neck.selector.register_forward_hook(lambda m, args, chosen, shape=shape: masks.append(chosen.mask(shape)))
    images, sample = torch.randn(1, 3, 128, 128), boxes_of([100, 100, 110, 110], [0, 5, 4, 9])
    model.train().loss(images, [sample])
    assert masks[0][0, 6, 6] and masks[0][0, 0, 0] and masks[0].sum() == 6
    assert masks[1].sum() == 2 and masks[1][0, 3, 3] and masks[1][0, 0, 0]
    with torch.no_grad():
        model.neck(model.backbone(images))  # outside of the loss, as in validation
    assert len(masks) == 4


# Where it may be used.


def test_what_cannot_be_taught_is_told():
    with pytest.raises(UserError, match='CellLossHook: the model has no FlexAttention; take the hook out'):
        taught(nn.Conv2d(3, 3, 3))
    with pytest.raises(UserError, match='`loss_weight` is 0'):
        CellLossHook(0)


def test_a_plain_vit_goes_on_as_it_is():
    model = Detector(num_glance_layers=3, out_indices=(1,))
    assert set(taught(model).loss(torch.randn(1, 3, 32, 32), [boxes_of()])) == {'loss_map'}


def test_a_compiled_network_is_not_compiled_anew_for_other_boxes():
    torch.compiler.reset()
    counter, images, graphs = CompileCounter(), torch.randn(2, 3, 64, 96), []
    eager, compiled = (taught(Detector(select_explore=0.0)).train() for _ in range(2))
    compile_parts(compiled, backend=counter)
    for number in range(4):
        sample = boxes_of(*([8.0 * n, 20.0, 8.0 * n + 6, 28.0] for n in range(number)))
        expected, losses = (network.loss(images, [sample, boxes_of()]) for network in (eager, compiled))
        torch.testing.assert_close(losses, expected)
        graphs.append(counter.frame_count)
    assert graphs == [graphs[0]] * 4 and graphs[0] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for name, p in compiled.named_parameters() if 'relevance' in name)
