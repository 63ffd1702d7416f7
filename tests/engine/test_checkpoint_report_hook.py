from types import SimpleNamespace

from mmvisattn.engine import CheckpointReportHook
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, FCViT, FlexViT

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.runner import Runner
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


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + name: value for name, value in weights.items()}


# Each puts weights into a file's content.
LAYOUTS = {
    'bare': dict,
    'bare, from several processes': lambda weights: prefixed('module.', weights),
    'state_dict': lambda weights: {'state_dict': weights},
    'state_dict, from several processes': lambda weights: {'state_dict': prefixed('module.', weights)},
    'state_dict, compiled': lambda weights: {'state_dict': prefixed('_orig_mod.', weights)},
    'model': lambda weights: {'model': weights},
    'model, from several processes': lambda weights: {'model': prefixed('module.', weights)},
    'module': lambda weights: {'module': weights},
}


class Segmentor(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        arch = dict(embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1))
        self.backbone = FCViT(arch, norm_eval=True)

    def forward(self, inputs, mode='tensor'):
        out = self.backbone(torch.stack(inputs))[0]
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(len(data_samples))

    def compute_metrics(self, results) -> dict:
        return dict(seen=sum(results))


def make_runner(work_dir, ema: bool, **kwargs) -> Runner:
    """A runner of one epoch at learning rate 0; ``EMAHook`` is registered first, as in a config that has it."""
    loader = dict(
        dataset=[dict(inputs=torch.randn(3, 32, 32))], sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1
    )
    model = Segmentor()
    return Runner(
        model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=NoMetric(),
        custom_hooks=[*([dict(type='EMAHook')] if ema else []), dict(type='mmvisattn.CheckpointReportHook')],
        default_hooks=dict(logger=None),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}-{id(model)}',
        log_level='ERROR',
        **kwargs,
    )


@pytest.fixture(scope='module')
def resumable(tmp_path_factory) -> dict:
    """What mmengine keeps after a training, with and without a moving average."""
    contents = {}
    for ema in (False, True):
        work_dir = tmp_path_factory.mktemp('resumable')
        runner = make_runner(work_dir, ema)
        runner.model.init_weights()
        runner.train()
        contents[ema] = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    return contents


@pytest.mark.parametrize('way', ['load_from', 'resume', 'test', 'Pretrained'])
@pytest.mark.parametrize('ema', [False, True], ids=['plain', 'ema'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_fills_the_model_every_way(layout, ema, way, resumable, tmp_path):
    content = dict(resumable[ema])
    weights = {name: value + 1 if value.is_floating_point() else value for name, value in content['state_dict'].items()}
    content = {key: value for key, value in content.items() if key != 'state_dict'} if way == 'resume' else {}
    content.pop('ema_state_dict', None)
    content |= LAYOUTS[layout](weights)
    path = str(tmp_path / 'given.pth')
    torch.save(content, path)

    runner = make_runner(tmp_path, ema, load_from=None if way == 'Pretrained' else path, resume=way == 'resume')
    if way == 'Pretrained':
        runner.model.backbone.init_cfg = dict(type='mmengine.model.PretrainedInit', checkpoint=path)
    runner.test() if way == 'test' else runner.train()
    assert runner.epoch == (way != 'test')
    torch.testing.assert_close(dict(runner.model.state_dict()), weights)
    if ema and way != 'Pretrained':  # which fills the model after the average was made of it
        (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        torch.testing.assert_close(dict(hook.ema_model.module.state_dict()), weights)


def test_a_moving_average_is_resumed(resumable, tmp_path):
    content = {key: dict(value) if key.endswith('state_dict') else value for key, value in resumable[True].items()}
    content['ema_state_dict'] = {
        name: value * 2 if value.is_floating_point() else value for name, value in content['ema_state_dict'].items()
    }
    average = dict(content['state_dict'])
    weights = {name: content['ema_state_dict']['module.' + name] for name in average}  # mmengine keeps them exchanged
    content['state_dict'] = prefixed('module.', average)
    torch.save(content, tmp_path / 'given.pth')
    runner = make_runner(tmp_path, True, load_from=str(tmp_path / 'given.pth'), resume=True)
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    torch.testing.assert_close(dict(runner.model.state_dict()), weights)
    torch.testing.assert_close(dict(hook.ema_model.module.state_dict()), average)


@pytest.mark.parametrize('layout', ['bare', 'state_dict', 'model'])
def test_weights_alone_are_not_resumed(layout, resumable, tmp_path):
    torch.save(LAYOUTS[layout](resumable[False]['state_dict']), tmp_path / 'given.pth')
    runner = make_runner(tmp_path, False, load_from=str(tmp_path / 'given.pth'), resume=True)
    with pytest.raises(UserError, match='does not say how far its training had come'):
        runner.train()
