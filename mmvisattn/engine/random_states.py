"""The random states of a process, as plain values that a checkpoint can hold."""

import random
from typing import Any, cast

import numpy as np
import torch


def get_random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, and of CUDA's where it is in use.

    Returns:
        dict[str, Any]: Plain values, read under ``weights_only`` as well.
    """
    name, keys, *rest = cast(tuple, np.random.get_state())
    states: dict[str, Any] = {
        'python': random.getstate(),
        'numpy': (name, keys.tolist(), *rest),
        'torch': torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state().tolist()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Go on with the random numbers where :func:`get_random_states` was called."""
    version, keys, gauss = states['python']
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = states['numpy']
    np.random.set_state((name, np.array(numbers, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(states['torch'], dtype=torch.uint8))
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(states['cuda'], dtype=torch.uint8))
