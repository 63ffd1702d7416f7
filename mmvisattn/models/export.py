"""What a network can know of the graph that it is exported to, so that it refuses in words what cannot be one.

``torch.onnx.export`` tries several ways to record a network, the compiler among them; the answers hold in all of them.
"""

import torch

from ..ops.common import is_exported, is_open

__all__ = ['is_exported', 'is_exported_to_onnx', 'is_open']


@torch.compiler.assume_constant_result
def is_exported_to_onnx() -> bool:
    """Whether the graph is to be one of ONNX."""
    return torch.onnx.is_in_onnx_export()
