from types import SimpleNamespace

from mmvisattn.engine import CheckpointReportHook
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, FlexViT

import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel
from torch import nn


class BaseModelOf(BaseModel):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.inner(inputs)


@pytest.fixture
def runner():
    return SimpleNamespace(_resume=False, model=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


def test_a_checkpoint_of_the_model_passes_unchanged(runner):
    checkpoint = {'state_dict': runner.model.state_dict(), 'meta': {'epoch': 3}}
    CheckpointReportHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'] is not None and checkpoint['meta'] == {'epoch': 3}


@pytest.mark.parametrize('layout', ['model', 'bare', 'module'])
def test_other_layouts_are_put_where_mmengine_looks(runner, layout):
    weights = dict(runner.model.state_dict())
    checkpoint = {
        'model': {'model': weights},
        'bare': dict(weights),
        'module': {'module.' + name: value for name, value in weights.items()},
    }[layout]
    CheckpointReportHook().after_load_checkpoint(runner, checkpoint)
    torch.testing.assert_close(checkpoint['state_dict'], weights)


def test_one_that_fits_nothing_is_refused(runner):
    with pytest.raises(UserError, match=r"not one of its 1 keys fits.*\['backbone.conv1.weight'\]"):
        CheckpointReportHook().after_load_checkpoint(runner, {'state_dict': {'backbone.conv1.weight': torch.ones(1)}})


def test_a_model_under_test_time_augmentation(runner):
    class Wrapper(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    weights = runner.model.state_dict()
    wrapped = SimpleNamespace(_resume=False, model=Wrapper(BaseModelOf(runner.model)))
    checkpoint = {'state_dict': {'inner.' + name: value for name, value in weights.items()}}
    CheckpointReportHook().after_load_checkpoint(wrapped, checkpoint)


def test_names_that_authors_gave_to_parts_are_made_ours():
    arch = dict(embed_dims=64, depth=1, d_inner=64, d_state=4, dt_rank=2, group_norm_size=64)
    model = nn.ModuleDict(dict(backbone=DefocusMamba(arch), head=nn.Linear(2, 2)))
    weights = {name.replace('.projection.', '.proj.'): value for name, value in model.state_dict().items()}
    assert weights.keys() != model.state_dict().keys()
    checkpoint = {'state_dict': weights}
    CheckpointReportHook().after_load_checkpoint(SimpleNamespace(_resume=False, model=model), checkpoint)
    torch.testing.assert_close(checkpoint['state_dict'], dict(model.state_dict()))


def test_what_a_part_resamples_is_what_mmengine_loads():
    arch = dict(embed_dims=8, depth=2, num_heads=2, mlp_ratio=2)
    model, other = (nn.ModuleDict(dict(backbone=FlexViT(arch, pretrain_size=size))) for size in (32, 64))
    checkpoint = {'state_dict': other.state_dict()}
    CheckpointReportHook().after_load_checkpoint(SimpleNamespace(_resume=False, model=model), checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
