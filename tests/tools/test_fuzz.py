"""Settings by chance: each works, or is refused in one line."""

import argparse
import copy
from contextlib import redirect_stderr
from io import StringIO

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT, FCViT, FlexViT

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..models.networks import BACKBONES
from .utils import load_tool

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

NUMBERS = st.one_of(
    st.integers(-3, 70), st.floats(-2, 3) | st.just(float('nan')), st.sampled_from(['1e999', '-0.0', '10**9'])
)
WORDS = st.sampled_from(
    ['', 'None', 'True', 'b12', 'dict()', "dict(type='X')", '[]', '[1,2]', '(0,1)', '((', "'", 'a=b', 'ü', '{}']
)
VALUES = st.one_of(NUMBERS.map(str), WORDS, st.text(max_size=6))


def keys_of(node: object, path: str = '') -> list[str]:
    """All dotted keys of a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = []
    for key, child in items:
        name = f'{path}.{key}'.lstrip('.')
        found += [name, *keys_of(child, name)]
    return found


@pytest.mark.timeout(600)
def test_options_of_a_config(seg_config):
    whole = cli.load_config(str(seg_config))
    known = keys_of(whole.to_dict())
    parser = argparse.ArgumentParser()
    cli.add_cfg_options(parser)
    seen = {'taken': 0, 'refused': 0}

    def change(key: str, place: int, letter: str) -> str:
        place %= len(key) + 1
        return key[:place] + letter + key[place:]

    strange = st.builds(
        change, st.sampled_from(known), st.integers(0, 99), st.sampled_from(['.', 'x', '0', '', '..', ' '])
    )

    @FUZZ
    @given(
        st.lists(
            st.tuples(st.one_of(st.sampled_from(known), strange, st.text(max_size=8)), VALUES), min_size=1, max_size=2
        )
    )
    def refuse_or_take(pairs):
        words = [f'{key}={value}' for key, value in pairs]
        try:
            with redirect_stderr(StringIO()) as told:
                args = parser.parse_args(['--cfg-options', *words])
        except SystemExit:
            assert 'error:' in told.getvalue().splitlines()[-1]
            seen['refused'] += 1
            return
        try:
            cfg = copy.deepcopy(whole)  # reading it again would take most of the time
            cli.check_option_keys(cfg, args.cfg_options)
            cfg.merge_from_dict(args.cfg_options)
            cli.check_model_options(cfg.model)
            seen['taken'] += 1
        except UserError as error:
            assert '\n' not in str(error).strip(), words
            seen['refused'] += 1

    refuse_or_take()
    assert min(seen.values()) > 10, seen


@pytest.mark.parametrize('network', BACKBONES, ids=lambda network: network.__name__)
def test_arguments_of_backbones(network):
    options = [*BACKBONES[network]['arch'], 'frozen_stages', 'out_indices', 'drop_path_rate', 'in_channels', 'with_cp']
    own = {
        FCViT: ['drop_rate', 'layer_scale_init_value'],
        FlexViT: [
            'zoom',
            'cell_size',
            'patch_size',
            'num_glance_layers',
            'select_ratio',
            'select_mode',
            'select_explore',
        ],
        DefocusMamba: ['delta_scale', 'rope_scale', 'token_order', 'scan_backend'],
        DefocusViT: ['delta_scale', 'rope_scale', 'token_order'],
        DefocusRetNet: ['delta_scale', 'rope_scale', 'pretrain_size'],
    }[network]
    values = st.one_of(
        st.integers(-3, 70), st.floats(-2, 3) | st.just(float('nan')), st.none(), st.booleans(), st.text(max_size=3),
        st.lists(st.integers(-2, 9), max_size=3), st.just(float('inf')),
    )  # fmt: skip
    seen = {'taken': 0, 'refused': 0}

    @FUZZ
    @given(st.sampled_from([*options, *own]), values)
    def refuse_or_take(option, value):
        kwargs = copy.deepcopy(BACKBONES[network])
        (kwargs['arch'] if option in kwargs['arch'] else kwargs)[option] = value
        try:
            network(**kwargs)
            seen['taken'] += 1
        except UserError as error:
            assert '\n' not in str(error), option
            seen['refused'] += 1

    refuse_or_take()
    assert min(seen.values()) > 10, seen


def test_options_of_make_mini(monkeypatch, capsys):
    tool, wanted = load_tool('data/make_mini'), []
    monkeypatch.setattr(tool, 'make_mini', lambda options, *args: wanted.append(options) or True)
    numbers = dict(
        train=1,
        val=1,
        size=2,
        classes=1,
        objects=2,
        shares=3,
        smallest=1,
        empty=1,
        crowd=1,
        decoys=2,
        seed=1,
        workers=1,
    )
    value = st.one_of(
        st.integers(-2, 300).map(str), (st.floats(-1, 2) | st.just(float('nan'))).map(str), st.text(max_size=4)
    )
    refused = []

    @FUZZ
    @given(st.sampled_from(sorted(numbers)), st.lists(value, min_size=3, max_size=3))
    def refuse_or_take(name, values):
        try:
            tool.main(['out', f'--{name}', *values[: numbers[name]]])
        except SystemExit as end:
            lines = capsys.readouterr().err.strip().splitlines()
            assert end.code and (end.code != 2 or 'error:' in lines[-1])
            refused.append(name)

    refuse_or_take()
    assert len(wanted) > 5 and len(refused) > 20
