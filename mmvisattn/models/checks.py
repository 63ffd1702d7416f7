"""What numbers the arguments of the networks may be; an argument means the same wherever it has the same name."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import NamedTuple

from ..errors import UserError


class Rule(NamedTuple):
    """What a number must be.

    Args:
        holds (Callable[[float], bool]): Whether a number is allowed.
        allowed (str): The same in words, to stand after "it must be".
        whole (bool): Only integers are numbers here.
    """

    holds: Callable[[float], bool]
    allowed: str
    whole: bool = False

    def accepts(self, value: object) -> bool:
        """Whether a value is such a number; booleans, infinity and NaN are not."""
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        number = float(value)
        return math.isfinite(number) and self.holds(number)


COUNT = Rule(lambda n: n >= 1, 'an integer from 1', whole=True)
LEVEL = Rule(lambda n: n >= 0, 'an integer from 0', whole=True)
INTEGER = Rule(lambda n: True, 'an integer', whole=True)
POSITIVE = Rule(lambda n: n > 0, 'a number above 0')
NOT_NEGATIVE = Rule(lambda n: n >= 0, 'a number from 0')
RATE = Rule(lambda n: 0 <= n < 1, 'a rate from 0 to below 1')
SCALE = Rule(lambda n: n > 0, 'above 0: 1 for images of the size of pretraining, larger where the sequence is longer')

RULES: dict[str, Rule] = {
    **dict.fromkeys(('depth', 'depths', 'num_layers', 'num_heads', 'num_classes', 'num_outs'), COUNT),
    **dict.fromkeys(('embed_dims', 'in_channels', 'out_channels', 'd_inner', 'dt_rank', 'group_norm_size'), COUNT),
    **dict.fromkeys(('patch_size', 'pretrain_size', 'cell_size', 'num_glance_layers'), COUNT),
    'd_state': Rule(lambda n: n >= 2 and n % 2 == 0, 'an even integer from 2', whole=True),
    'zoom': Rule(
        lambda n: n >= 2,
        'an integer from 2, such as 2 or 3, since windows of the full image are as large as the shrunk image',
        whole=True,
    ),
    **dict.fromkeys(('low_level', 'high_level', 'start_level'), LEVEL),
    **dict.fromkeys(('in_index', 'ignore_index', 'frozen_stages'), INTEGER),
    **dict.fromkeys(('mlp_ratio', 'mlp_ratios'), POSITIVE),
    **dict.fromkeys(('rope_scale', 'delta_scale'), SCALE),
    **dict.fromkeys(('drop_rate', 'drop_path_rate'), RATE),
    **dict.fromkeys(('layer_scale_init_value', 'loss_weight'), NOT_NEGATIVE),
    'select_ratio': Rule(
        lambda n: 0 <= n <= 1, 'the share of high-resolution cells to attend to, from 0 (none) to 1 (all)'
    ),
    'select_explore': Rule(
        lambda n: 0 <= n <= 1, 'the share of selected cells to draw at random in training, from 0 (none) to 1 (all)'
    ),
    'select_threshold': Rule(
        lambda n: 0 <= n <= 255, 'a number from 0 to 255, the scale on which relevance is compared, such as 48'
    ),
}


def check_numbers(owner: str, **arguments: object) -> None:
    """Refuse numbers that an argument may not be.

    Args:
        owner (str): Name of the network, for the message.
        **arguments (object): Values by the names of :data:`RULES`.

    Raises:
        UserError: If one is out of range or no number of the right kind.
    """
    for name, value in arguments.items():
        if not RULES[name].accepts(value):
            raise UserError(f'{owner}: `{name}` is {value!r}; it must be {RULES[name].allowed}')


def check_sequences(owner: str, **arguments: Sequence) -> None:
    """Refuse what is not a sequence, or sequences of different length, or with a wrong number in them.

    Args:
        owner (str): Name of the network, for the message.
        **arguments (Sequence): Sequences by the names of :data:`RULES`, with an entry a stage.

    Raises:
        UserError: If one is wrong.
    """
    for name, values in arguments.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UserError(f'{owner}: `{name}` is {values!r}; it must be a sequence with one entry a stage')
        rule = RULES[name]
        if not all(map(rule.accepts, values)):
            raise UserError(f'{owner}: `{name}` is {values!r}; each entry must be {rule.allowed}')
    if len({len(values) for values in arguments.values()}) > 1:
        names = ', '.join(f'`{name}` {values!r}' for name, values in arguments.items())
        raise UserError(f'{owner}: {names} differ in length; each has one entry a stage')


def check_heads(owner: str, channels: int, num_heads: int, of_head: int = 1, argument: str = 'embed_dims') -> None:
    """Refuse heads that do not share the channels evenly.

    Args:
        owner (str): Name of the network, for the message.
        channels (int): Number of channels.
        num_heads (int): Number of heads.
        of_head (int): What the channels of a head must be a multiple of, such as 2 for pairs that are rotated.
        argument (str): Name of the argument that gives the channels.

    Raises:
        UserError: If they do not.
    """
    if channels % (of_head * num_heads):
        multiple = f'a multiple of {of_head}, which are rotated together' if of_head > 1 else 'as many'
        raise UserError(
            f'{owner}: `{argument}` is {channels} and `num_heads` {num_heads}; heads must divide the channels, so that '
            f'each has {multiple}'
        )


def check_hidden(owner: str, channels: int, mlp_ratio: float, argument: str = 'mlp_ratio') -> None:
    """Refuse MLPs without a channel inside.

    Raises:
        UserError: If the ratio is that small.
    """
    if int(channels * mlp_ratio) < 1:
        raise UserError(
            f'{owner}: `{argument}` is {mlp_ratio}, which leaves none of {channels} channels; it must be at least '
            f'1 / {channels}'
        )
