from types import SimpleNamespace

from mmvisattn.engine import CellRuleHook
from mmvisattn.engine.cell_rule_hook import CELL_RULES
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.necks import FlexAttentionNeck

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import RuntimeInfoHook
from mmengine.runner import get_priority
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

SMALL = dict(embed_dims=24, depth=3, num_heads=3, mlp_ratio=2)


def runner_of(backbone: nn.Module, neck: nn.Module | None = None) -> SimpleNamespace:
    model = nn.Module()
    model.backbone, model.neck = backbone, neck
    return SimpleNamespace(model=model)


class Levels(nn.Module):
    """Maps of strides 8 and 16."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(x, side).repeat(1, 8, 1, 1) for side in (8, 16)]


def choose(rule: str, x: torch.Tensor, boxes: list[list[float]], neck: bool = False) -> tuple[torch.Tensor, dict]:
    """The cells that are chosen of a picture with such boxes, and the metrics of its validation."""
    torch.manual_seed(0)
    if neck:
        chooser = FlexAttentionNeck(24, 1, 0, num_heads=3, select_ratio=0.1).eval()
        runner = runner_of(Levels(), nn.Sequential(nn.Identity(), chooser))
        network = nn.Sequential(runner.model.backbone, runner.model.neck)
    else:
        network = chooser = FlexViT(SMALL, patch_size=8, pretrain_size=64, cell_size=1, select_ratio=0.1).eval()
        runner = runner_of(network)
    hook = CellRuleHook(rule)
    hook.before_run(runner)
    chosen = []
    chooser.selector.register_forward_hook(lambda module, args, selection: chosen.append(selection.mask((8, 8))))
    sample = BaseDataElement(gt_instances=InstanceData(bboxes=torch.tensor(boxes)))
    hook.before_val_epoch(None)
    hook.before_val_iter(None, 0, dict(data_samples=[sample]))
    with torch.no_grad():
        network(x)
    metrics = {}
    hook.after_val_epoch(None, metrics)
    return chosen[0][0], metrics


@pytest.mark.parametrize('neck', [False, True])
def test_rules_choose_what_they_say(neck):
    x = torch.randn(1, 3, 128, 128) * 0.1  # cells of 16 pixels
    x[:, :, 32:48, 16:32] *= 20
    boxes = [[17.0, 100.0, 30.0, 115.0], [40.0, 5.0, 52.0, 12.0]]  # cells (6, 1), (7, 1) and (0, 2), (0, 3)
    picked = {rule: choose(rule, x, boxes, neck) for rule in CELL_RULES}
    assert all(cells.sum() == 6 for cells, _ in picked.values())
    assert picked['truth'][0][[6, 7, 0, 0], [1, 1, 2, 3]].all()
    assert picked['truth'][1] == {'cells/recall': 1.0}
    assert picked['deviation'][0][2, 1]
    assert picked['centre'][0][3:5, 3:5].all() and picked['centre'][1] == {'cells/recall': 0.0}
    assert not torch.equal(picked['relevance'][0], picked['chance'][0])


def test_recall_counts_the_boxes_whose_middle_is_seen():
    x = torch.randn(1, 3, 128, 128)
    boxes = [[0.0, 0.0, 20.0, 4.0], [60.0, 60.0, 66.0, 66.0]]  # in the middle of the picture the second alone
    assert choose('centre', x, boxes)[1] == {'cells/recall': 0.5}


def test_the_class_counts_of_boxes_that_were_found_alone():
    truth = InstanceData(
        bboxes=torch.tensor([[0, 0, 8, 8], [16, 0, 24, 8], [32, 0, 40, 8]]) * 2.0, labels=torch.arange(3)
    )
    found = InstanceData(
        # The first twice, the surer one wrong; the second as what it is, and once beside it; the third too far off.
        bboxes=torch.tensor([[0, 0, 8, 8], [0, 0, 8, 7], [16, 0, 24, 8], [20, 0, 28, 8], [38, 0, 46, 8]]).float(),
        scores=torch.tensor([0.3, 0.6, 0.2, 0.9, 0.9]),
        labels=torch.tensor([0, 2, 1, 0, 2]),
    )
    hook = CellRuleHook()
    for detections, share in ((found, 0.5), (found[1:2], 0.0), (found[2:3], 1.0)):
        sample = BaseDataElement(metainfo=dict(scale_factor=(2.0, 2.0)), gt_instances=truth, pred_instances=detections)
        hook.before_val_epoch(None)
        hook.after_val_iter(None, 0, None, [sample])
        metrics = {}
        hook.after_val_epoch(None, metrics)
        assert metrics == {'found/class_accuracy': share}

    # Nothing found, nothing there, a segmentor.
    hook.before_test_epoch(None)
    nothing = [BaseDataElement(gt_instances=t, pred_instances=f) for t, f in ((truth, found[:0]), (truth[:0], found))]
    hook.after_test_iter(None, 0, None, [*nothing, BaseDataElement()])
    metrics = {}
    hook.after_test_epoch(None, metrics)
    assert metrics == {}


def test_the_share_is_in_the_metrics_before_they_are_logged():
    assert get_priority(CellRuleHook().priority) < get_priority(RuntimeInfoHook().priority)


def test_a_plain_vit_meets_nothing():
    hook = CellRuleHook('chance')
    hook.before_run(runner_of(FlexViT(SMALL, 8, 64, num_glance_layers=3, out_indices=(1,))))
    hook.boxes = [torch.zeros(1, 4)]
    metrics = {}
    hook.after_test_epoch(None, metrics)
    assert metrics == {'cells/recall': 0.0}


def test_wrong_use():
    with pytest.raises(UserError, match=r"'chanse' \(did you mean 'chance'\?\)"):
        CellRuleHook('chanse')
    with pytest.raises(UserError, match='CellRuleHook: the model has no FlexAttention; take the hook out'):
        CellRuleHook().before_run(runner_of(nn.Conv2d(3, 3, 1)))
