"""Where NaN and inf come from."""

from mmvisattn.engine import FiniteHook
from mmvisattn.errors import UserError

import pytest
import torch
from mmengine.hooks import Hook

from .test_resume_hook import train

FLAG = dict(type='mmvisattn.FiniteHook')


class Spoil(Hook):
    """Spoils something before the third iteration."""

    priority = 'HIGHEST'

    def __init__(self, spoil):
        self.spoil = spoil

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            self.spoil(runner.model.layers, data_batch)


SPOILT = {
    'pixels': (lambda layers, batch: batch['inputs'][1].fill_(float('nan')), 'image 1 of the batch has pixels'),
    'weights': (
        lambda layers, batch: layers[0].weight.data.fill_(float('inf')),
        r'`layers\.0` \(Linear\) has an output of finite inputs',
    ),
    'gradient': (
        lambda layers, batch: layers[3].weight.register_hook(lambda gradient: gradient / 0),
        r'`layers\.3\.weight` has a gradient',
    ),
}


@pytest.mark.parametrize('what', SPOILT)
def test_training_stops_with_the_name(what, tmp_path):
    spoil, message = SPOILT[what]
    with pytest.raises(UserError, match=rf'iteration 3: {message}.* with NaN or inf; '):
        train(tmp_path, 4, Spoil(spoil), FLAG, seed=1)


def test_without_the_flag_training_goes_on(tmp_path):
    runner = train(tmp_path, 4, Spoil(SPOILT['pixels'][0]), seed=1)
    assert not torch.isfinite(runner.model.layers[0].weight).all()


def test_finite_training_is_not_changed(tmp_path):
    once, twice = train(tmp_path / 'once', 3, FLAG, seed=1), train(tmp_path / 'twice', 3, seed=1)
    assert torch.equal(once.model.layers[0].weight, twice.model.layers[0].weight)
    (hook,) = [hook for hook in once.hooks if isinstance(hook, FiniteHook)]
    assert hook.handles == []
