"""Class weights of mmseg's cross entropy, where pixels are void."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy

VOID = 255
WEIGHTS = [1.0, 2.0, 5.0]


@pytest.fixture
def logits():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def labels():
    return torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('avg_non_ignore', [False, True])
def test_void_pixels_are_left_out_as_by_torch(logits, labels, avg_non_ignore):
    labels[:, :3] = VOID
    loss = CrossEntropyLoss(class_weight=WEIGHTS, avg_non_ignore=avg_non_ignore)
    expected = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=VOID)
    torch.testing.assert_close(loss(logits, labels, ignore_index=VOID), expected)
    (gradient,) = torch.autograd.grad(loss(logits, labels, ignore_index=VOID), logits)
    assert not gradient[:, :, :3].any() and gradient[:, :, 3:].all()


def test_nothing_but_void_is_no_loss(logits, labels):
    loss = CrossEntropyLoss(class_weight=WEIGHTS)(logits, torch.full_like(labels, VOID), ignore_index=VOID)
    assert loss.item() == 0


def test_the_rest_is_mmsegs(logits, labels):
    stock = cross_entropy.__wrapped__
    weights = torch.tensor(WEIGHTS)
    torch.testing.assert_close(
        cross_entropy(logits, labels, class_weight=weights), stock(logits, labels, class_weight=weights)
    )
    labels[0, 0] = VOID
    assert cross_entropy(logits, labels, ignore_index=VOID) == stock(logits, labels, ignore_index=VOID)
    with pytest.raises(IndexError):  # else the measure is not needed any more
        stock(logits, labels, class_weight=weights, ignore_index=VOID, avg_non_ignore=True)
