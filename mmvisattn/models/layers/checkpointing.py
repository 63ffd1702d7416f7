"""Gradient checkpointing: memory traded for computing a module a second time in the backward."""

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, *args: object, with_cp: bool) -> Tensor | tuple[Tensor | None, ...]:
    """``module(*args)``, whose activations are not kept but computed again where a gradient needs them.

    Args:
        module: What to call.
        *args: Its arguments.
        with_cp: Do so; otherwise, or where no gradient is recorded, this is a plain call.

    Returns:
        What the module returns.
    """
    if with_cp and is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False)
    return module(*args)
