from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

SMALL = dict(embed_dims=8, depth=3, num_heads=2, mlp_ratio=1)


class Model(BaseModel):
    """A network that notes α of each iteration, in training and in evaluation."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.alphas: list[float] = []

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> dict:
        values = {block.alpha.item() for block in self.backbone.blocks}
        assert len(values) == 1
        self.alphas += values
        return dict(loss=self.backbone(inputs)[0].square().mean())


def train(work_dir, model: nn.Module, by_epoch: bool = True, **kwargs) -> None:
    """Train for 4 epochs of 5 iterations, or 20 iterations."""
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.randn(3, 16, 16)) for _ in range(5)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            batch_size=1,
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=4) if by_epoch else dict(by_epoch=False, max_iters=20),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2 if by_epoch else 8, by_epoch=by_epoch)),
        default_scope='mmengine',
        log_level='WARNING',
        experiment_name=f'{work_dir.name}-{id(model)}',
        **kwargs,
    )
    runner.train()


def build_model() -> Model:
    return Model(FlexViT(SMALL, patch_size=4, pretrain_size=16, num_glance_layers=1))


@pytest.mark.parametrize('by_epoch', [True, False])
def test_alpha_rises_over_a_fraction_of_the_training_and_resumes(by_epoch, tmp_path):
    hook = dict(type='mmvisattn.FlexRampHook', fraction=0.5)
    model = build_model()
    train(tmp_path, model, by_epoch, custom_hooks=[hook])
    assert model.alphas == pytest.approx([min(1, i / 10) for i in range(20)])
    assert not any(block.blending for block in model.backbone.blocks)

    resumed = build_model()
    done, name = (10, 'epoch_2.pth') if by_epoch else (8, 'iter_8.pth')
    train(tmp_path, resumed, by_epoch, custom_hooks=[hook], load_from=str(tmp_path / name), resume=True)
    assert resumed.alphas == pytest.approx([min(1, i / 10) for i in range(done, 20)])


def test_a_model_without_flex_attention(tmp_path):
    class Plain(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> dict:
            return dict(loss=self.conv(inputs).mean())

    with pytest.raises(UserError, match='no FlexAttention; take the hook out'):
        train(tmp_path, Plain(), custom_hooks=[dict(type='mmvisattn.FlexRampHook')])


@pytest.mark.parametrize('fraction', [0, -1, 1.5])
def test_wrong_fraction(fraction, tmp_path):
    with pytest.raises(UserError, match=f'`fraction` is {fraction}'):
        train(tmp_path, build_model(), custom_hooks=[dict(type='mmvisattn.FlexRampHook', fraction=fraction)])
