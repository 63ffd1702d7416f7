"""Backbones that are not ``model.backbone``: a student and its teacher, a wrapper, a distiller."""

from types import SimpleNamespace

from mmvisattn.engine import ScheduledDropPathHook
from mmvisattn.engine.backbones import find_backbones
from mmvisattn.errors import UserError
from mmvisattn.models import FCViT

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

ARCH = dict(embed_dims=(8, 16, 16, 24), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2))


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(24, 4, 1)


class SemiSupervised(nn.Module):
    """As mmdet's ``SemiBaseDetector``."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Detector(FCViT(ARCH, drop_path_rate=0.2))
        self.teacher = Detector(FCViT(ARCH, drop_path_rate=0.2))


def rates(model: nn.Module) -> dict[str, float]:
    config = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=1.0),
        constructor='mmvisattn.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    return {names[parameter]: group['lr'] for group in groups for parameter in group['params']}


def test_found_wherever_they_are():
    assert list(find_backbones(SemiSupervised())) == ['student.backbone', 'teacher.backbone']
    assert list(find_backbones(FCViT(ARCH))) == ['']
    assert list(find_backbones(nn.ModuleDict(dict(module=Detector(FCViT(ARCH)))))) == ['module.backbone']
    assert list(find_backbones(Detector(nn.Conv2d(3, 24, 1)))) == ['backbone']
    assert find_backbones(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize('part', ['student.', 'teacher.'])
def test_layer_decay_of_student_and_teacher(part):
    seen = rates(SemiSupervised())
    expected = {'head.weight': 1.0, 'backbone.norm6.weight': 1.0, 'backbone.patch_embed.proj.weight': 0.5**5}
    assert {name: seen[part + name] for name in expected} == expected


def test_layer_decay_without_a_backbone_that_knows_its_depth_is_told():
    with pytest.raises(UserError, match='Conv2d has no `get_layer_depth`'):
        rates(nn.ModuleDict(dict(student=Detector(nn.Conv2d(3, 24, 1)))))


def test_scheduled_drop_path_reaches_student_and_teacher():
    model = SemiSupervised()
    runner = SimpleNamespace(
        model=model,
        train_loop=None,
        epoch=1,
        max_epochs=2,
        message_hub=SimpleNamespace(update_scalar=lambda *_: None),
    )
    ScheduledDropPathHook(0.0, 0.4).before_train(runner)
    for part in (model.student, model.teacher):
        assert part.backbone.network[6][0].drop_path.drop_prob == pytest.approx(0.4)
