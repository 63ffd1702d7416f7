from mmvisattn.datasets.files import make_split, split_of
from mmvisattn.errors import UserError

import pytest


@pytest.mark.parametrize(
    ('name', 'split'),
    [
        ('instances_val2017', 'val'),
        ('train', 'train'),
        ('Training', 'train'),
        ('valid', 'val'),
        ('my-test_set', 'test'),
        ('trainannot', None),
        ('evaluation', None),
        ('contest', None),
    ],
)
def test_split_of_a_name(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(('count', 'share', 'expected'), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2), (100, 0.25, 25)])
def test_split(count, share, expected):
    names = [f'{i}.jpg' for i in range(count)]
    chosen = make_split(names, share)
    assert len(chosen) == expected and chosen < set(names)
    assert make_split(reversed(names), share) == chosen


def test_a_single_image_cannot_be_split():
    with pytest.raises(UserError, match='1 image: training and validation need one each'):
        make_split(['a.jpg'], 0.2)
