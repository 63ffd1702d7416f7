"""Golden vectors: numbers computed with the authors' implementations, on weights and images that are not stored.

Every entry of a module's ``state_dict`` is a function of its name and its shape, and an image one of its shape, so that
another implementation with the same names and shapes gets the same weights.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def load_golden(folder: str | Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of one file of golden vectors.

    Args:
        folder (str | Path): Where the files lie.
        name (str): Name of the file without ``.npz``.
    """
    with np.load(Path(folder, f'{name}.npz')) as file:
        return {key: file[key] for key in file.files}


def golden_image(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The standard normal images of a golden case.

    Args:
        shape (Sequence[int]): Shape, (B, 3, H, W).
        seed (int): Seed. Defaults to 0.
        dtype (torch.dtype): Type that the float32 numbers are given. Defaults to ``torch.float32``.
    """
    image = np.random.default_rng(seed).standard_normal(tuple(int(n) for n in shape)).astype(np.float32)
    return torch.from_numpy(image).to(dtype)


def load_golden_weights(module: nn.Module, prefix: str = '') -> None:
    """Fill every parameter and buffer of a module by the rule for its name and shape.

    Args:
        module (nn.Module): The module.
        prefix (str): What stands before its names in the larger model whose vectors are at hand.
    """
    module.load_state_dict(golden_state_dict(module.state_dict(), prefix), strict=True)


def golden_state_dict(state_dict: Mapping[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
    """The golden values of all entries; see :func:`load_golden_weights`."""
    return {name: torch.from_numpy(golden_value(prefix + name, entry.shape)) for name, entry in state_dict.items()}


def golden_value(name: str, shape: Sequence[int]) -> np.ndarray:
    """The value of the entry ``name`` with ``shape``, by the first rule that fits; seeded by the CRC-32 of the name."""
    shape = tuple(int(n) for n in shape)
    leaf = name.rsplit('.', 1)[-1]
    if leaf == 'num_batches_tracked':
        return np.zeros(shape, dtype=np.int64)
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    noise = np.asarray(noise, dtype=np.float32)
    if leaf == 'running_var':
        value = 1.0 + 0.1 * np.abs(noise)
    elif leaf == 'A_log':  # about log(1), log(2), …, log(N)
        value = np.log(np.arange(1, shape[-1] + 1, dtype=np.float64)).astype(np.float32) + 0.05 * noise
    elif leaf == 'freq':
        value = _initial_frequencies(shape[-1]) + 0.02 * noise
    elif leaf in ('D', 'rescale_weight') or leaf == 'weight' and len(shape) == 1:
        value = 1.0 + 0.1 * noise
    elif leaf.startswith('layer_scale_'):
        value = 0.5 + 0.1 * noise
    elif name.endswith('dt_proj.bias'):
        value = -3.0 + 0.2 * noise
    elif len(shape) <= 1:
        value = 0.1 * noise
    else:
        value = noise * (1.0 / float(np.sqrt(int(np.prod(shape[1:])))))
    return np.asarray(value, dtype=np.float32)


def _initial_frequencies(count: int) -> np.ndarray:
    """Rotary frequencies 100**(-k/count), k = 1, …, count, moved to the range 0 to 1."""
    k = np.arange(1, count + 1, dtype=np.float64)
    return ((100.0 ** (-k / count) - 0.01) / 0.99).astype(np.float32)
