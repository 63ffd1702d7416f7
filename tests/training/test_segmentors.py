"""Short real trainings through tools/train.py and tools/test.py: they must learn, not only run."""

import numpy as np
import pytest

from .utils import MINUTES, SMALL_SEGMENTOR, ade_options, short, train

NOISE = 3  # mIoU in per cent; training brings 50


@pytest.mark.parametrize(
    ('config', 'iterations', 'warm_up'),
    [('fcvit-mini_fpn_ade20k', 60, 20), ('defocus-retnet-mini_upernet_ade20k', 120, 50)],
)
def test_segmentor_learns(data, tmp_path, config, iterations, warm_up):
    schedule = [*short(iterations, 'iters'), f'param_scheduler.0.end={warm_up}', f'param_scheduler.1.begin={warm_up}']
    options = [*ade_options(data), *(SMALL_SEGMENTOR if 'defocus' in config else []), *schedule]
    scalars, metrics = train(f'configs/mini/{config}.py', tmp_path, *options)
    assert scalars[-1]['loss'] < 0.7 * scalars[0]['loss']
    # Calling everything by the name of one class would give one of seven a part of 100.
    assert metrics['mIoU'] > 30, metrics


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
def test_bfloat16_learns_as_float32(data, tmp_path):
    options = [*ade_options(data), *short(200, 'iters')]
    metrics = []
    for flags in ((), ('--amp',)):
        folder = tmp_path / f'work{len(flags)}'
        scalars, measured = train('configs/mini/fcvit-mini_fpn_ade20k.py', folder, *options, flags=flags)
        assert np.isfinite([line['loss'] for line in scalars]).all()
        metrics.append(measured['mIoU'])
    assert metrics[0] != metrics[1] and abs(metrics[0] - metrics[1]) < NOISE
