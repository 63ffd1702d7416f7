import pytest
import torch
from mmcv.ops import SigmoidFocalLoss, SoftmaxFocalLoss, sigmoid_focal_loss, softmax_focal_loss

from tests.compat.mmcv_ext.devices import DEVICES
from tests.golden import load

CLASSES = 5


def sigmoid_reference(logits, target, gamma, alpha, weight=None):
    p = logits.sigmoid()
    positive = torch.nn.functional.one_hot(target, CLASSES + 1)[:, :CLASSES].bool()  # the last one is background
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * p.log(),
        -(1 - alpha) * p**gamma * (1 - p).log(),
    )
    if weight is not None:
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    return loss


def softmax_reference(logits, target, gamma, alpha, weight=None):
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    loss = -alpha * (1 - p) ** gamma * p.log()
    return loss if weight is None else loss * weight[target]


def inputs(seed=0, rows=30, background=True):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(0, CLASSES + background, (rows,), generator=generator)
    return logits, target, torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.5


def check(loss, reference, logits, target, arguments, device, dtype):
    logits = logits.clone().requires_grad_()
    expected = reference(logits, target, *arguments)
    expected.sum().backward()
    mine = logits.detach().to(device, dtype).requires_grad_()
    arguments = [value.to(device, dtype) if isinstance(value, torch.Tensor) else value for value in arguments]
    gamma, alpha, *weight = arguments
    weight = weight[0] if weight else None
    y = loss(mine, target.to(device), gamma, alpha, weight, 'none')
    tolerance = {} if dtype == torch.float64 else dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y.detach().cpu().double(), expected.detach(), **tolerance)

    total = loss(mine, target.to(device), gamma, alpha, weight, 'sum')
    total.backward()
    torch.testing.assert_close(total.detach().cpu().double(), expected.detach().sum(), **tolerance)
    torch.testing.assert_close(mine.grad.cpu().double(), logits.grad, **tolerance)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('with_weight', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.7)])
class TestFormula:
    def test_sigmoid(self, gamma, alpha, with_weight, dtype, device):
        logits, target, weight = inputs()
        arguments = [gamma, alpha] + [weight] * with_weight
        check(sigmoid_focal_loss, sigmoid_reference, logits, target, arguments, device, dtype)

    def test_softmax(self, gamma, alpha, with_weight, dtype, device):
        logits, target, weight = inputs(background=False)
        arguments = [gamma, alpha] + [weight] * with_weight
        check(softmax_focal_loss, softmax_reference, logits, target, arguments, device, dtype)


def test_golden_inputs():
    data = load('mmcv_ops')
    logits, target = torch.from_numpy(data['focal_p']).double(), torch.from_numpy(data['focal_t'])
    check(sigmoid_focal_loss, sigmoid_reference, logits, target, [2.0, 0.25], 'cpu', torch.float32)


def test_sure_predictions_keep_loss_and_gradient():
    # In float32 sigmoid(30) is 1; the loss of a sure mistake is its logit all the same.
    logits = torch.tensor([[30.0, -30.0, 60.0, -60.0, 0.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    expected = torch.tensor([[0.75 * 30, 0.25 * 30, 0.75 * 60, 0.0]])
    torch.testing.assert_close(loss.detach()[:, :4], expected)
    torch.testing.assert_close(logits.grad[:, :4], torch.tensor([[0.75, -0.25, 0.75, 0.0]]))
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    for target in (0, 1):
        softmax_focal_loss(logits, torch.tensor([target]), 0.5, 0.25, None, 'sum').backward()
    assert logits.grad.isfinite().all()


def test_mean_is_over_rows():
    logits, target, _ = inputs()
    sum_, mean = (SigmoidFocalLoss(2.0, 0.25, None, how)(logits, target) for how in ('sum', 'mean'))
    torch.testing.assert_close(mean, sum_ / len(logits))


def test_softmax_ignores_negative_targets():
    logits, target, _ = inputs(background=False)
    target[::2] = -1
    logits.requires_grad_()
    loss = SoftmaxFocalLoss(2.0, 0.25, None, 'sum')(logits, target)
    loss.backward()
    expected = softmax_reference(logits.detach()[1::2], target[1::2], 2.0, 0.25).sum()
    torch.testing.assert_close(loss.detach(), expected)
    assert not logits.grad[::2].any() and logits.grad[1::2].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('loss', [sigmoid_focal_loss, softmax_focal_loss])
def test_reduced_precision(loss, dtype):
    logits, target, _ = inputs(background=False)
    x = logits.to(dtype).requires_grad_()
    y = loss(x, target, 2.0, 0.25, None, 'sum')
    y.backward()
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.double(), loss(x.detach().double(), target, 2.0, 0.25, None, 'sum'), rtol=2e-2, atol=0)


@pytest.mark.parametrize('loss', [sigmoid_focal_loss, softmax_focal_loss])
def test_no_rows(loss):
    x = torch.zeros(0, CLASSES, requires_grad=True)
    y = loss(x, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum')
    y.backward()
    assert y == 0 and x.grad.shape == x.shape
