"""Selective scan, the recurrence of Mamba (https://arxiv.org/abs/2312.00752), forward and backward.

For each batch element, channel ``d`` and state entry ``n``, with a state that starts at zero::

    h[t, d, n] = exp(delta[t, d] * A[d, n]) * h[t - 1, d, n] + delta[t, d] * u[t, d] * B[t, n]
    y[t, d]    = sum_n C[t, n] * h[t, d, n]

Given ``gy = dL/dy`` the gradient of the state obeys the same recurrence backwards in time,
``g[t] = C[t] * gy[t] + exp(delta[t + 1] * A) * g[t + 1]``, and all five gradients are sums over products of ``g``,
``h`` and the inputs. No backend holds a tensor of shape (B, D, L, N): the forward pass keeps the state of every
``CHUNK``-th step only, and the backward pass recomputes the steps between from there.

Memory layout: any strides are accepted. Channels-last memory, that is a contiguous (B, L, D) tensor seen as
``x.transpose(1, 2)``, is the fastest, because one time step of all channels then lies together; it is also what
``nn.Linear`` produces, and the layout of the result and of the gradients of ``u`` and ``delta``.
"""

from .interface import BACKENDS, available_backends, scan_tokens, selective_scan, unavailable_reason

__all__ = ['BACKENDS', 'available_backends', 'scan_tokens', 'selective_scan', 'unavailable_reason']
