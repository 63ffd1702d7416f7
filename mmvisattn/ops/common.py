"""What all operators share: autocast and tracing."""

import contextlib

import torch


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which autocast leaves the types alone."""
    if device.type in ('cpu', 'cuda'):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def is_exported() -> bool:
    """Whether the graph that is being recorded leaves this process."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def is_traced() -> bool:
    """Whether the code is being compiled or exported, so that the graph should show plain operators."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
