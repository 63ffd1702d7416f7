from pathlib import Path

import pytest

from .utils import run


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    """The scenes that the configs are made for."""
    folder = tmp_path_factory.mktemp('scenes') / 'mini'
    run('tools/data/make_mini.py', folder)
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Large, plain scenes of two things: what a network can learn in a minute."""
    folder = tmp_path_factory.mktemp('data') / 'mini'
    options = '--train 160 --val 24 --size 96 80 --classes 2 --objects 1 2 --shares 0 1 0 --empty 0 --crowd 0'
    run('tools/data/make_mini.py', folder, *options.split())
    return folder
