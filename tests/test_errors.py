from mmvisattn.errors import nearest

import pytest


@pytest.mark.parametrize(
    ('name', 'cutoff', 'expected'),
    [
        ('b13', {}, " (did you mean 'b12'?)"),
        ('b13', dict(cutoff=0.8), ''),
        ('tinny', dict(cutoff=0.8), " (did you mean 'tiny'?)"),
        ('spiral', {}, ''),
    ],
)
def test_nearest_name_is_offered_where_one_is_near(name, cutoff, expected):
    assert nearest(name, ('tiny', 'b12'), **cutoff) == expected
