from mmvisattn.models.layers import DropPath

import pytest
import torch
from timm.layers import DropPath as TimmDropPath


@pytest.mark.parametrize('rate', [0.25, 0.9])
def test_samples_are_dropped_whole_at_the_rate_and_the_mean_stays(rate):
    torch.manual_seed(0)
    path = DropPath(rate)
    y = path(torch.ones(20000, 2, 3))
    kept = (y != 0).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert kept[:, 0].float().mean() == pytest.approx(1 - rate, abs=0.02)
    torch.testing.assert_close(y[kept.all(1)], torch.full_like(y[kept.all(1)], 1 / (1 - rate)))


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    x = torch.randn(8, 4)
    assert DropPath(0.5).eval()(x) is x and DropPath()(x) is x
    path = DropPath(0.5)
    path.drop_prob = 0.0
    assert path(x) is x
    path.drop_prob = 0.75
    assert path.drop_prob == 0.75 and set(path(torch.ones(64, 1)).unique().tolist()) == {0.0, 4.0}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_the_type_stays_and_weights_of_timm_load(dtype):
    path = DropPath(0.5)
    assert path(torch.ones(4, 2, dtype=dtype)).dtype == dtype
    assert not path.state_dict() and isinstance(path, TimmDropPath)


def test_the_rate_outlasts_a_model_without_memory():
    with torch.device('meta'):  # as FSDP builds it with `skip_init_weights`
        path = DropPath(0.75)
    path.to_empty(device='cpu')
    torch.manual_seed(0)
    assert set(path(torch.ones(64, 1)).unique().tolist()) == {0.0, 4.0}
