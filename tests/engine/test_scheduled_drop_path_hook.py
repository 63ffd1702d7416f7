from mmvisattn.engine import ScheduledDropPathHook
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusViT, FCViT

import pytest
import torch
from mmcv.cnn.bricks import DropPath as MMCVDropPath
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

DEPTH = 4
BATCHES = 2  # iterations of an epoch


class Model(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.backbone(torch.stack(inputs))[0].square().mean())


class Record(Hook):
    """Notes the rates of all layers as each iteration sees them."""

    priority = 'LOWEST'

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append([block.drop_path.drop_prob for block in runner.model.backbone.blocks])


def vit(drop_path_rate=0.3):
    return DefocusViT(dict(embed_dims=8, depth=DEPTH, num_heads=2, mlp_ratio=1), drop_path_rate=drop_path_rate)


def train(work_dir, hook, train_cfg, backbone=None, **kwargs):
    """Train and return the rates; ``train_cfg`` counts in epochs or iterations."""
    record = Record()
    runner = Runner(
        Model(backbone or vit()),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.randn(3, 16, 16))] * BATCHES, batch_size=1, sampler=dict(type='DefaultSampler')
        ),
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[hook, record],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=None),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}-{id(record)}',
        log_level='ERROR',
        **kwargs,
    )
    runner.train()
    return torch.tensor(record.rates, dtype=torch.double)


def expected_rates(steps, start, end):
    """``linspace(0, r, depth)`` for r from ``start`` to ``end``."""
    return torch.stack([torch.linspace(0, r, DEPTH, dtype=torch.double) for r in torch.linspace(start, end, steps)])


HOOK = dict(type='mmvisattn.ScheduledDropPathHook', start=0.1, end=0.7)


def test_rates_rise_epoch_by_epoch(tmp_path):
    rates = train(tmp_path, HOOK, dict(by_epoch=True, max_epochs=5))
    expected = expected_rates(5, 0.1, 0.7).repeat_interleave(BATCHES, 0)
    torch.testing.assert_close(rates, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('train_cfg', [dict(by_epoch=False, max_iters=6), dict(by_epoch=True, max_epochs=3)])
def test_rates_change_iteration_by_iteration(train_cfg, tmp_path):
    rates = train(tmp_path, HOOK | dict(by_epoch=False, start=0.5, end=0.0), train_cfg)
    torch.testing.assert_close(rates, expected_rates(6, 0.5, 0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_resumes_at_the_right_rate(by_epoch, tmp_path):
    hook, train_cfg = HOOK | dict(by_epoch=by_epoch), dict(by_epoch=True, max_epochs=5)
    whole = train(tmp_path, hook, train_cfg)
    resumed = train(tmp_path, hook, train_cfg, load_from=str(tmp_path / 'epoch_3.pth'), resume=True)
    assert len(resumed) == 2 * BATCHES
    torch.testing.assert_close(resumed, whole[3 * BATCHES :])


def test_one_epoch_has_the_first_rate(tmp_path):
    rates = train(tmp_path, HOOK, dict(by_epoch=True, max_epochs=1))
    torch.testing.assert_close(rates[0], expected_rates(1, 0.1, 0.1)[0], rtol=0, atol=1e-6)


def rates_of(backbone):
    """The rates that the hook sets half-way, given a runner that stands there."""

    class HalfWay:
        model, train_loop, max_epochs, epoch = nn.ModuleDict(dict(backbone=backbone)), None, 3, 1
        message_hub = type('MessageHub', (), dict(update_scalar=lambda *args: None))()

    ScheduledDropPathHook(0.2, 0.6).before_train(HalfWay)
    return [module.drop_prob for module in backbone.modules() if hasattr(module, 'drop_prob')]


def test_layers_of_other_networks():
    small = dict(embed_dims=(8, 8, 8, 8), depths=(1, 2, 1, 1), mlp_ratios=(1, 1, 1, 1))
    assert rates_of(FCViT(small, drop_path_rate=0.1)) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates_of(nn.Sequential(MMCVDropPath(0.05), MMCVDropPath(0.2))) == pytest.approx([0.1, 0.4])


def test_backbone_without_drop_path_is_refused():
    with pytest.raises(UserError, match='DefocusViT has no drop path to schedule; set `drop_path_rate`'):
        rates_of(vit(drop_path_rate=0.0))


def test_epochs_are_asked_for_where_there_are_none(tmp_path):
    with pytest.raises(UserError, match='set `by_epoch=False`'):
        train(tmp_path, HOOK, dict(by_epoch=False, max_iters=2))


@pytest.mark.parametrize('start, end', [(-0.1, 0.5), (0.1, 1.0)])
def test_wrong_rate_is_answered(start, end):
    with pytest.raises(UserError, match='from 0 to below 1'):
        ScheduledDropPathHook(start, end)
