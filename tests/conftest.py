import mmvisattn  # noqa: F401  in place before any test module imports mmcv, mmdet or mmseg

import pytest
import torch

# The tensors are small; a second thread costs more in waiting than it saves, much more on a busy machine.
torch.set_num_threads(1)

# What takes the longest is begun first, lest a worker be left alone with it at the end.
LONGEST = ('tests/training/', 'tests/tools/')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; the others keep their order."""
    items.sort(
        key=lambda item: next((i for i, room in enumerate(LONGEST) if item.nodeid.startswith(room)), len(LONGEST))
    )
