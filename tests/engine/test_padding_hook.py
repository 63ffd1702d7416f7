import copy
from types import SimpleNamespace

from mmvisattn.engine import PaddingHook, watch_images
from mmvisattn.errors import UserError
from mmvisattn.models.necks import FlexAttentionNeck

import pytest
import torch
from torch import nn


class Detector(nn.Module):
    """A backbone, and a list of necks behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 8, 8)
        self.neck = nn.Sequential(nn.Identity(), FlexAttentionNeck(16, 1, 0, num_heads=2, select_ratio=0.5))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine = self.backbone(images)
        return self.neck([fine, fine[:, :, ::2, ::2]])


def chosen_in(detector: Detector, images: torch.Tensor) -> torch.Tensor:
    seen = []
    selector = detector.neck[1].selector
    handle = selector.register_forward_hook(lambda module, args, selection: seen.append(selection.mask((4, 4))))
    with torch.no_grad():
        detector(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize('wrapped', [False, True])
def test_no_cell_of_padding_is_chosen(wrapped):
    torch.manual_seed(0)
    detector = Detector().eval()
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :32, :32] = torch.randn(1, 3, 32, 32)  # cells of 16 pixels: 2×2 of 4×4
    assert chosen_in(detector, images).sum() == 8
    model = nn.ModuleDict(dict(student=detector)) if wrapped else detector
    PaddingHook().before_run(SimpleNamespace(model=model))
    chosen = chosen_in(detector, images)[0]
    assert chosen.sum() == 2 and not chosen[2:].any() and not chosen[:, 2:].any()


def test_the_necks_of_a_copy_see_the_images_of_the_copy():
    first = Detector().eval()
    assert watch_images(first) == [first.neck[1]]
    second = copy.deepcopy(first)
    second.backbone(torch.randn(1, 3, 64, 64))
    assert first.neck[1].images is None and second.neck[1].images is not None


def test_a_model_without_the_neck_is_refused():
    with pytest.raises(UserError, match='PaddingHook: the model has no FlexAttentionNeck; take the hook out'):
        PaddingHook().before_run(SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 3, 1))))
