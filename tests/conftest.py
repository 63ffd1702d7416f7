import gc

import mmvisattn  # noqa: F401  in place before any test module imports mmcv, mmdet or mmseg

import pytest
import torch

from . import mmengine_once  # noqa: F401

# The tensors are small; a second thread costs more in waiting than it saves, much more on a busy machine.
torch.set_num_threads(1)

# What takes the longest is begun first, lest a worker be left alone with it at the end.
LONGEST = ('tests/training/', 'tests/tools/', 'tests/test_', 'tests/models/test_export', 'tests/ops/')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; the others keep their order."""
    items.sort(
        key=lambda item: next((i for i, room in enumerate(LONGEST) if item.nodeid.startswith(room)), len(LONGEST))
    )


def pytest_collection_finish() -> None:
    """Leave all that has been imported out of the collections of garbage that each dataset of mmengine begins with."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """As it was, for libraries that look for leaks at their end."""
    gc.unfreeze()
