"""Short real trainings through tools/train.py and tools/test.py: they must learn, not only run."""

import pytest

from .utils import SMALL_SEGMENTOR, ade_options, short, train


@pytest.mark.parametrize('config', ['fcvit-mini_fpn_ade20k', 'defocus-retnet-mini_upernet_ade20k'])
def test_segmentor_learns(data, tmp_path, config):
    options = [*ade_options(data), *short(120, 'iters'), *(SMALL_SEGMENTOR if 'defocus' in config else [])]
    scalars, metrics = train(f'configs/mini/{config}.py', tmp_path, *options)
    assert scalars[-1]['loss'] < 0.7 * scalars[0]['loss']
    # Calling everything by the name of one class would give one of seven a part of 100.
    assert metrics['mIoU'] > 30, metrics
