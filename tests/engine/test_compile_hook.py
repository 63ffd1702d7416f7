from mmvisattn.engine import CompileHook
from mmvisattn.engine.compile_hook import compile_parts
from mmvisattn.errors import UserError

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch._dynamo.testing import CompileCounter

SIZES = [(16, 24), (24, 16), (32, 32), (40, 16)]


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Part(nn.Sequential):
    """With a forward of its own: older torch does not compile torch's own classes where they are called alone."""

    def forward(self, x):
        return super().forward(x)


class Model(BaseModel):
    """Backbone and neck, and a head that asks for values as those of the toolboxes do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Part(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.GELU())
        self.neck = Part(nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, inputs, mode='tensor'):
        maps = self.neck(self.backbone(inputs))
        positive = maps.detach()[maps.detach() > 0].numel()
        return dict(loss=self.head(maps).square().mean() * positive) if mode == 'loss' else [maps]


class Sum(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(data_samples[0].sum().item())

    def compute_metrics(self, results):
        return dict(sum=sum(results))


def run(folder, *hooks):
    """Train for two epochs with validation, test, and return the weights, the metrics and the model."""
    torch.manual_seed(0)
    images = [dict(inputs=torch.randn(3, *size)) for size in SIZES]
    loader = dict(
        dataset=images,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        batch_size=1,
    )
    runner = Runner(
        Model(),
        work_dir=str(folder),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg={},
        test_cfg={},
        val_evaluator=[Sum()],
        test_evaluator=[Sum()],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
        custom_hooks=list(hooks),
        default_hooks=dict(logger=None),
        default_scope='mmvisattn',
        experiment_name=str(folder),
        log_level='ERROR',
    )
    runner.train()
    metrics = runner.test()
    return torch.load(folder / 'epoch_2.pth', weights_only=False)['state_dict'], metrics, runner.model


def test_training_validation_and_test_are_compiled_and_give_the_same(tmp_path):
    counter = CompileCounter()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        weights, metrics, _ = run(tmp_path / 'compiled', dict(type='CompileHook', backend=counter, fullgraph=True))
    expected_weights, expected_metrics, _ = run(tmp_path / 'eager')
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, msg=name)
    assert metrics == pytest.approx(expected_metrics)
    # At most, of each part, one graph for the first size and one for all others, in training and again in evaluation.
    assert 2 <= counter.frame_count <= 8


def test_only_the_parts_are_compiled(tmp_path):
    model = run(tmp_path, dict(type='CompileHook', backend='eager'))[-1]
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ['backbone', 'neck']


def test_both_models_of_a_teacher_and_a_student_are_compiled():
    models = nn.ModuleDict(dict(teacher=Model(), student=Model()))
    names = compile_parts(models, backend='eager')
    assert sorted(names) == ['student.backbone', 'student.neck', 'teacher.backbone', 'teacher.neck']


def test_an_option_that_torch_does_not_know():
    with pytest.raises(UserError, match=r"no option 'mod' \(did you mean 'mode'\?\)"):
        CompileHook(mod='default')


def test_a_model_without_a_backbone():
    with pytest.raises(UserError, match='no backbone; take the hook out'):
        compile_parts(nn.Sequential(nn.Conv2d(3, 3, 1)))
