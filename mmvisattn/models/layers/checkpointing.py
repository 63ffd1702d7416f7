"""Gradient checkpointing."""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run(module: Any, *args: Any, with_cp: bool) -> Any:
    """Apply a module; ``with_cp`` trades memory for computing it a second time in the backward.

    Args:
        module (Any): A module, or a method of one.
        *args (Any): Its inputs.
        with_cp (bool): Keep the inputs alone for the backward, and not the activations.

    Returns:
        Any: What the module returns.
    """
    if with_cp and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False)
    return module(*args)
