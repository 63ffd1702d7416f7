"""What all operators share: types, memory, autocast and tracing."""

import contextlib

import torch
from torch import Tensor, nn
from torch.fx.experimental import symbolic_shapes
from torch.torch_version import TorchVersion

# Before, `torch.compiler.is_exporting` was true to dynamo whatever it compiled for.
EXPORT_IS_TOLD = TorchVersion(torch.__version__) >= TorchVersion('2.12')


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """A map (B, C, H, W) in the memory format in which the operators are the fastest: on a CPU channels innermost."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == 'cpu' else x


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which autocast leaves the types alone."""
    if device.type in ('cpu', 'cuda'):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is no more than its weights, so that these may be used without calling it.

    It is more if it has hooks, or another class: what adapts, quantises or shards a layer leaves such in its place.

    Args:
        layer (nn.Module): The layer.
        kind (type[nn.Module]): What it was built as.
    """
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return type(layer) is kind and not any(hooks)


def is_exported() -> bool:
    """Whether the graph that is being recorded leaves this process.

    Before torch 2.12 a strict `torch.export` is not told from `torch.compile`, and counts as the latter.
    """
    exporting = torch.compiler.is_exporting()
    if not EXPORT_IS_TOLD and torch.compiler.is_dynamo_compiling():
        exporting = False
    return torch.jit.is_tracing() or exporting


def is_open(size: int | torch.SymInt) -> bool:
    """Whether an exported graph is to leave a size open (``dynamic_shapes``)."""
    return is_exported() and is_open_in_graph(size)


def is_open_in_graph(size: int | torch.SymInt) -> bool:
    """Whether the graph that is being recorded, for an export or by the compiler, leaves a size open."""
    return is_traced() and not torch.jit.is_tracing() and not symbolic_shapes.has_static_value(size)


def is_traced() -> bool:
    """Whether the code is being compiled or exported, so that the graph should show plain operators."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
