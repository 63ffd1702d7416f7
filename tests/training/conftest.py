from pathlib import Path

import pytest

from tests.shared import made_once

from .utils import run


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    """The scenes that the configs are made for."""
    folder = tmp_path_factory.mktemp('scenes') / 'mini'
    run('tools/data/make_mini.py', folder)
    return folder


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """Large, plain scenes of two things: what a network can learn in a minute."""
    options = '--train 160 --val 24 --size 96 80 --classes 2 --objects 1 2 --shares 0 1 0 --empty 0 --crowd 0'
    return made_once(
        tmp_path_factory, 'large-scenes', lambda folder: run('tools/data/make_mini.py', folder, *options.split())
    )
