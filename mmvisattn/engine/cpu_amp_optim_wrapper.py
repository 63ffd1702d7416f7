"""Mixed precision on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Forward passes in bfloat16 where torch's autocast has it so, on the CPU; weights and gradients stay float32.

    mmengine's ``AmpOptimWrapper`` asks for a GPU, for the sake of the loss scale of float16. bfloat16 has the range of
    float32 and needs none. Its arguments are those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and mmengine's own context for gradient accumulation."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
