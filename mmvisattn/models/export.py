"""What a network can know of the graph that it is exported to, so that it refuses in words what cannot be one.

``torch.onnx.export`` tries several ways to record a network, the compiler among them; the answers hold in all of them.
"""

import torch
from torch.fx.experimental import symbolic_shapes

from ..ops.common import is_exported


@torch.compiler.assume_constant_result
def is_exported_to_onnx() -> bool:
    """Whether the graph is to be one of ONNX."""
    return torch.onnx.is_in_onnx_export()


def is_open(size: int | torch.SymInt) -> bool:
    """Whether an exported graph is to leave a size open (``dynamic_shapes``)."""
    if isinstance(size, torch.SymInt):
        return True
    return is_exported() and not torch.jit.is_tracing() and not symbolic_shapes.has_static_value(size)
