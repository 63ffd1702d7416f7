"""Golden vectors: numbers computed with the authors' implementations, see tests/data/golden/README.md."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.golden_weights import golden_image as _golden_image
from tests.golden_weights import golden_state_dict

DATA = Path(__file__).parent / 'data' / 'golden'


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one golden file."""
    with np.load(DATA / f'{name}.npz') as file:
        return {key: file[key] for key in file.files}


def golden_image(shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The seeded standard normal input of a golden case."""
    return torch.from_numpy(_golden_image(tuple(int(s) for s in shape), seed)).to(dtype)


def load_golden_weights(module: nn.Module, prefix: str = '') -> None:
    """Fill every parameter and buffer of a module by the weight rule; strict."""
    module.load_state_dict(golden_state_dict(module.state_dict(), prefix), strict=True)
