"""Inputs and an independent float64 evaluation for the tests of selective_scan."""

import numpy as np
import torch
from torch import Tensor

NAMES = ('u', 'delta', 'A', 'B', 'C')


def make_inputs(
    batch: int, dim: int, length: int, state: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Random u, delta, A, B, C of the sizes that a network gives."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    u = normal(batch, dim, length)
    delta = torch.nn.functional.softplus(normal(batch, dim, length) - 1)
    A = -torch.exp(normal(dim, state))
    return [x.to(dtype) for x in (u, delta, A, normal(batch, state, length), normal(batch, state, length))]


def evaluate(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence in NumPy and float64, one state entry after another."""
    u, delta, A, B, C = (x.detach().double().cpu().numpy() for x in (u, delta, A, B, C))
    y = np.zeros_like(u)
    for n in range(A.shape[1]):
        h = np.zeros(u.shape[:2])
        for t in range(u.shape[2]):
            h = np.exp(delta[:, :, t] * A[:, n]) * h + delta[:, :, t] * u[:, :, t] * B[:, None, n, t]
            y[:, :, t] += C[:, None, n, t] * h
    return torch.from_numpy(y)


def gradients(function, inputs: list[Tensor], grad_y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Result, and the gradients of all inputs for the gradient ``grad_y`` of the result."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    return y.detach(), torch.autograd.grad(y, inputs, grad_y.to(y))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest difference relative to the largest expected value."""
    expected = expected.double().cpu()
    assert actual.shape == expected.shape
    error = (actual.detach().double().cpu() - expected).abs().max() if actual.numel() else 0.0
    scale = expected.abs().max() if actual.numel() else 1.0
    assert error <= tolerance * scale, f'error {error:.3g} at a scale of {scale:.3g}'
