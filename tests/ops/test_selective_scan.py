import logging
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from mmvisattn.ops.selective_scan import (
    BACKENDS,
    available_backends,
    common,
    cpu_backend,
    interface,
    mamba_backend,
    reference,
    scan_tokens,
    selective_scan,
    torch_backend,
)

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.golden import load
from tests.ops.scan_cases import NAMES, assert_close, evaluate, gradients, make_inputs

HAS_COMPILER = bool(shutil.which('ninja') and (shutil.which('g++') or shutil.which('clang++')))
BACKENDS_HERE = ['reference', 'torch', *(['cpu'] if HAS_COMPILER else [])]
KERNELS = [name for name in BACKENDS_HERE if name != 'reference']
SIZES = [
    # batch, dim, length, state
    (1, 1, 1, 1),
    (2, 5, 1, 16),
    (3, 16, 31, 16),
    (1, 17, 32, 16),
    (2, 40, 33, 16),
    (2, 9, 65, 3),
    (1, 35, 97, 20),
]


@pytest.fixture(params=BACKENDS_HERE)
def scan(request):
    return partial(selective_scan, backend=request.param)


@pytest.fixture(params=KERNELS)
def kernel(request):
    return partial(selective_scan, backend=request.param)


def reference_gradients(inputs, grad_y):
    return gradients(partial(selective_scan, backend='reference'), [x.double() for x in inputs], grad_y.double())


# -------------------------------------------------------------------------------------------------------- correctness


@pytest.mark.parametrize('sizes', SIZES)
def test_equals_the_recurrence(scan, sizes):
    inputs = make_inputs(*sizes)
    assert_close(scan(*inputs), evaluate(*inputs), 2e-6)
    inputs = [x.double() for x in inputs]
    assert_close(scan(*inputs), evaluate(*inputs), 1e-14)


@pytest.mark.parametrize('sizes', SIZES)
def test_gradients_equal_those_of_the_recurrence(kernel, sizes):
    inputs = make_inputs(*sizes)
    grad_y = torch.randn(sizes[:3], generator=torch.Generator().manual_seed(1))
    _, expected = reference_gradients(inputs, grad_y)
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-13)):
        y, actual = gradients(kernel, [x.to(dtype) for x in inputs], grad_y)
        assert y.dtype == dtype
        for x, a, e in zip(inputs, actual, expected):
            assert a.dtype == dtype and a.shape == x.shape
            assert_close(a, e, tolerance)


@pytest.mark.parametrize('sizes', [(2, 2, 1, 2), (2, 3, 4, 2), (1, 2, 34, 1)])
def test_gradcheck(scan, sizes):
    inputs = [x.requires_grad_() for x in make_inputs(*sizes, torch.float64)]
    assert torch.autograd.gradcheck(scan, inputs)


def test_golden(scan):
    data = load('selective_scan_B2_D8_L37_N16')
    arrays = {key: torch.from_numpy(value) for key, value in data.items()}
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-13)):
        y, grads = gradients(scan, [arrays[name].to(dtype) for name in NAMES], arrays['gy'])
        assert_close(y, arrays['y_f64'], tolerance)
        for name, grad in zip(NAMES, grads):
            assert_close(grad, arrays[f'grad_{name}_f64'], tolerance)


def test_long_sequence_with_slow_decay(kernel):
    """Errors of the exponential would pile up over the thousand steps for which these states remember."""
    u, delta, A, B, C = make_inputs(1, 8, 3000, 4)
    inputs = [u, 1e-3 * delta, A, B, C]
    assert_close(kernel(*inputs), evaluate(*inputs), 1e-5)


@pytest.mark.parametrize('frozen', range(5))
def test_one_input_without_gradient(kernel, frozen):
    inputs = make_inputs(1, 3, 34, 2)
    expected = gradients(kernel, inputs, inputs[0])[1]
    leaves = [x.clone().requires_grad_(i != frozen) for i, x in enumerate(inputs)]
    kernel(*leaves).backward(inputs[0])
    for i, (leaf, grad) in enumerate(zip(leaves, expected)):
        assert leaf.grad is None if i == frozen else torch.equal(leaf.grad, grad)


def test_second_derivative_is_refused(kernel):
    inputs = [x.requires_grad_() for x in make_inputs(1, 2, 3, 2)]
    (grad,) = torch.autograd.grad(kernel(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match='selective_scan is once differentiable'):
        grad.sum().backward()


# ----------------------------------------------------------------------------------------------- types, layouts, sizes


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_has_a_float32_state(scan, dtype):
    inputs = make_inputs(2, 18, 70, 16, dtype)
    grad_y = torch.randn(2, 18, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    y, grads = gradients(scan, inputs, grad_y)
    expected_y, expected = reference_gradients(inputs, grad_y)
    rounding = torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert_close(y, expected_y, 0.51 * rounding)
    for x, a, e in zip(inputs, grads, expected):
        assert a.dtype == x.dtype
        assert_close(a, e, 0.51 * rounding)


def test_mixed_types(scan):
    u, delta, A, B, C = make_inputs(2, 6, 40, 16)
    inputs = [u.bfloat16(), delta, A, B.half(), C.bfloat16()]
    y, grads = gradients(scan, inputs, u)
    expected_y, expected = reference_gradients(inputs, u.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y, expected_y, 4e-3)
    for x, a, e in zip(inputs, grads, expected):
        assert a.dtype == x.dtype
        assert_close(a, e, 4e-3 if x.dtype == torch.bfloat16 else 1e-3 if x.dtype == torch.float16 else 5e-6)


def time_major(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def strided(x):
    wide = x.new_full((x.shape[0], 2 * x.shape[1] + 1, 3 * x.shape[2]), float('nan'))
    wide[:, 1::2, ::3] = x
    return wide[:, 1::2, ::3]


@pytest.mark.parametrize('layout', [time_major, strided, lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0)])
def test_memory_layout_does_not_matter(scan, layout):
    inputs = make_inputs(2, 37, 45, 16)
    grad_y = torch.randn(2, 37, 45, generator=torch.Generator().manual_seed(1))
    y, grads = gradients(scan, inputs, grad_y)
    u, delta, A, B, C = inputs
    assert not layout(u).is_contiguous()
    moved = [layout(u), layout(delta), strided(A[None])[0], layout(B), layout(C)]
    moved_y, moved_grads = gradients(scan, moved, layout(grad_y))
    assert torch.equal(y, moved_y)
    for grad, moved_grad in zip(grads, moved_grads):
        assert torch.equal(grad, moved_grad)


def test_expanded_inputs(kernel):
    u, delta, A, B, C = make_inputs(1, 20, 40, 4)
    inputs = [u.expand(2, -1, -1), delta[:, :, :1].expand(2, -1, 40), A[:1].expand(20, -1), B.expand(2, -1, -1), C]
    inputs[-1] = C.expand(2, -1, -1)
    grad_y = torch.ones(1, 1, 1).expand(2, 20, 40)
    y, grads = gradients(kernel, inputs, grad_y)
    expected_y, expected = reference_gradients(inputs, grad_y)
    assert_close(y, expected_y, 2e-6)
    for a, e in zip(grads, expected):
        assert_close(a, e, 5e-6)


def test_result_is_time_major(kernel):
    inputs = [x.requires_grad_() for x in make_inputs(2, 6, 40, 4)]
    y = kernel(*inputs)
    assert y.transpose(1, 2).is_contiguous()
    grad_u, grad_delta = torch.autograd.grad(y.sum(), inputs[:2])
    assert grad_u.transpose(1, 2).is_contiguous() and grad_delta.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize('sizes', [(0, 5, 7, 4), (2, 5, 0, 4), (2, 0, 7, 4)])
def test_empty_inputs(kernel, sizes):
    inputs = make_inputs(*sizes)
    assert selective_scan(*inputs, backend='reference').shape == sizes[:3]
    y, grads = gradients(kernel, inputs, torch.ones(sizes[:3]))
    assert y.shape == sizes[:3]
    for x, grad in zip(inputs, grads):
        assert grad.shape == x.shape and not grad.any()


# ----------------------------------------------------------------------------------------------------- extreme numbers


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_large_steps_forget_everything(scan, dtype):
    """exp(delta * A) underflows to nothing: y[t] = delta[t] u[t] <B[t], C[t]>, without overflow or NaN."""
    u, delta, A, B, C = make_inputs(2, 18, 70, 16, dtype)
    inputs = [u, delta + 1, 1e5 * A - 1e4, B, C]
    y, grads = gradients(scan, inputs, u)
    assert_close(y, inputs[1] * u * (B * C).sum(1, keepdim=True), 1e-6)
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[2].abs().max() < 1e-20


def test_decays_across_the_underflow_limit(kernel):
    """Exponents from -200 to 0, that is through the denormal numbers of float32."""
    u, _, _, B, C = make_inputs(1, 24, 201, 3)
    delta = torch.linspace(0, 200, 201).roll(77).expand(1, 24, 201)
    inputs = [u / 100, delta, -torch.ones(24, 3), B, C]
    grad_y = u.flip(2)
    y, grads = gradients(kernel, inputs, grad_y)
    expected_y, expected = reference_gradients(inputs, grad_y)
    assert_close(y, expected_y, 2e-6)
    for a, e in zip(grads, expected):
        assert_close(a, e, 5e-6)


def test_growing_states(kernel):
    """Nothing relies on the sign of A."""
    u, delta, A, B, C = make_inputs(2, 18, 40, 5)
    inputs = [u, 0.2 * delta, -A, B, C]
    y, grads = gradients(kernel, inputs, u)
    expected_y, expected = reference_gradients(inputs, u)
    assert_close(y, expected_y, 1e-5)
    for a, e in zip(grads, expected):
        assert_close(a, e, 1e-5)


def test_overflow_is_infinite(scan):
    u, delta, A, B, C = (torch.ones_like(x) for x in make_inputs(1, 2, 6, 2))
    y = scan(u, 60 * delta, A, B, C)
    assert y[..., :2].isfinite().all() and y[..., 4:].isinf().all()


@pytest.mark.parametrize('case', ['fading', 'forgetting'])
def test_denormal_numbers_are_not_slow(kernel, case):
    """They cost CPUs a hundredfold: states and gradients that fade after a pulse, decays that are nearly nothing."""
    inputs = make_inputs(1, 512, 1024, 16)
    inputs[1].fill_(0.1)
    inputs[2].clamp_(-3, -1)
    grad_y = torch.randn_like(inputs[0])
    slow_inputs, slow_grad_y = list(inputs), grad_y
    if case == 'fading':  # to below 1e-38 within the sequence, where a slow decay would stay
        slow_inputs[0], slow_grad_y = torch.zeros_like(inputs[0]), torch.zeros_like(grad_y)
        slow_inputs[0][..., 0], slow_grad_y[..., -1] = 1, 1
    else:  # exp(-95) = 5.5e-42
        slow_inputs[1:3] = torch.full_like(inputs[1], 95), torch.full_like(inputs[2], -1)

    def seconds(inputs, grad_y):
        best = float('inf')
        for _ in range(4):
            start = time.thread_time()
            gradients(kernel, inputs, grad_y)
            best = min(best, time.thread_time() - start)
        return best

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert seconds(slow_inputs, slow_grad_y) < 2 * seconds(inputs, grad_y)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('name', NAMES)
def test_nan_goes_where_it_must_and_nowhere_else(scan, name):
    """At step 40 of channel 3 (or of one state entry): later steps alone, and of that channel alone."""
    inputs = dict(zip(NAMES, make_inputs(2, 20, 70, 4)))
    clean = scan(*inputs.values())
    expected = torch.zeros(2, 20, 70, dtype=torch.bool)
    if name in ('u', 'delta'):
        inputs[name][1, 3, 40] = float('nan')
        expected[1, 3, 40:] = True
    elif name == 'A':
        inputs[name][3, 2] = float('nan')
        expected[:, 3] = True
    else:
        inputs[name][1, 2, 40] = float('nan')
        expected[1, :, 40 : 41 if name == 'C' else None] = True
    y = scan(*inputs.values())
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(y[~expected], clean[~expected])


def test_every_result_is_written(kernel):
    """With NaN in all fresh memory."""
    inputs = make_inputs(2, 21, 45, 5)
    expected = gradients(kernel, inputs, inputs[0])
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        y, grads = gradients(kernel, inputs, inputs[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(y, expected[0])
    for a, e in zip(grads, expected[1]):
        assert torch.equal(a, e)


def test_strictly_causal(scan):
    u, delta, A, B, C = make_inputs(2, 20, 70, 4)
    y = scan(u, delta, A, B, C)
    other = make_inputs(2, 20, 70, 4, seed=5)
    mixed = [torch.cat([x[..., :50], z[..., 50:]], 2) for x, z in zip((u, delta, B, C), (*other[:2], *other[3:]))]
    y_mixed = scan(*mixed[:2], A, *mixed[2:])
    assert torch.equal(y[..., :50], y_mixed[..., :50])
    assert (y[..., 50:] != y_mixed[..., 50:]).all()


def test_batch_elements_are_independent(scan):
    inputs = make_inputs(3, 20, 40, 4)
    y = scan(*inputs)
    alone = scan(*(x if i == 2 else x[1:2] for i, x in enumerate(inputs)))
    assert_close(alone, y[1:2], 1e-6)


# ------------------------------------------------------------------------------------------ autocast, compile, memory


def test_autocast_leaves_the_scan_alone(scan):
    inputs = make_inputs(2, 18, 70, 16)
    y, grads = gradients(scan, inputs, inputs[0])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast_y, cast_grads = gradients(scan, inputs, inputs[0])
        assert torch.mm(inputs[2], inputs[2].t()).dtype == torch.bfloat16
    assert torch.equal(y, cast_y)
    for grad, cast_grad in zip(grads, cast_grads):
        assert torch.equal(grad, cast_grad)


def test_activation_checkpointing(kernel):
    inputs = make_inputs(2, 18, 40, 16)
    expected = gradients(kernel, inputs, inputs[0])
    actual = gradients(partial(checkpoint, kernel, use_reentrant=False), inputs, inputs[0])
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(a, e) for a, e in zip(actual[1], expected[1]))


def test_compiles_as_one_operation(kernel):
    """Without a graph break, and without unrolling the loop over time."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    def network(u, delta, A, B, C):
        return kernel(u, delta.exp(), A, B, C).square()

    inputs = make_inputs(2, 18, 70, 16)
    expected = gradients(network, inputs, inputs[0])
    torch.compiler.reset()
    actual = gradients(torch.compile(network, backend=backend, fullgraph=True), inputs, inputs[0])
    assert len(graphs) == 1 and len(graphs[0].graph.nodes) < 30
    assert torch.equal(actual[0], expected[0])
    actual = gradients(torch.compile(network, backend='aot_eager', fullgraph=True), inputs, inputs[0])
    assert_close(actual[0], expected[0], 1e-6)
    for a, e in zip(actual[1], expected[1]):
        assert_close(a, e, 1e-6)


def test_compiles_for_any_length(kernel):
    scan = torch.compile(kernel, backend='aot_eager', fullgraph=True, dynamic=True)
    torch.compiler.reset()
    for length in (40, 65):
        inputs = make_inputs(2, 6, length, 4)
        expected = gradients(kernel, inputs, inputs[0])
        actual = gradients(scan, inputs, inputs[0])
        for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1])):
            assert_close(a, e, 1e-6)


@pytest.mark.parametrize('backend', KERNELS)
def test_operators_declare_what_they_do(backend):
    inputs = make_inputs(2, 18, 70, 16)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.mmvisattn.selective_scan.default, (*leaves, backend, True))
    _, states = torch.ops.mmvisattn.selective_scan(*inputs, backend, True)
    arguments = (inputs[0], *inputs, states, backend)
    torch.library.opcheck(torch.ops.mmvisattn.selective_scan_backward.default, arguments)


def test_schemas():
    operators = torch.ops.mmvisattn
    assert str(operators.selective_scan.default._schema) == (
        'mmvisattn::selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, str backend, '
        'bool save_states) -> (Tensor, Tensor)'
    )
    assert str(operators.selective_scan_backward.default._schema) == (
        'mmvisattn::selective_scan_backward(Tensor grad_y, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, '
        'Tensor states, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)'
    )


def test_seen_by_a_flop_counter():
    with FlopCounterMode(display=False) as counter:
        selective_scan(*make_inputs(2, 5, 9, 3))
    assert counter.get_total_flops() == 2 * 5 * 9 * (7 * 3 + 1)


def test_states_are_saved_for_gradients_alone(kernel, monkeypatch):
    saved = []
    original = interface._KERNELS[kernel.keywords['backend']].forward
    monkeypatch.setattr(
        interface._KERNELS[kernel.keywords['backend']],
        'forward',
        lambda *args: (saved.append(args[-1]), original(*args))[1],
    )
    inputs = make_inputs(1, 2, 34, 2)
    kernel(*inputs)
    inputs[1].requires_grad_()
    kernel(*inputs)
    with torch.no_grad():
        kernel(*inputs)
    assert saved == [False, True, False]


def test_meta_tensors():
    inputs = [x.to('meta').requires_grad_() for x in make_inputs(2, 6, 40, 4)]
    y = selective_scan(*inputs)
    assert y.shape == (2, 6, 40) and y.device.type == 'meta'
    y.sum().backward()
    assert inputs[2].grad.shape == (6, 4)


def test_torch_backend_never_holds_the_states_of_all_steps():
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (result if isinstance(result, (tuple, list)) else [result]))
            return result

    batch, dim, length, state = 2, 24, 1600, 16
    inputs = make_inputs(batch, dim, length, state)
    with Sizes():
        _, states = torch_backend.forward(*inputs, save_states=True)
        torch_backend.backward(inputs[0], *inputs, states)
    assert max(sizes) == max(batch * dim * length, states.numel(), batch * dim * common.CHUNK * state)
    assert max(sizes) * 10 < batch * dim * length * state


# ------------------------------------------------------------------------------------------------ choice of the backend


def test_available_backends():
    available = available_backends()
    assert tuple(available) == BACKENDS
    assert available['reference'] is None and available['torch'] is None
    if HAS_COMPILER:
        assert available['cpu'] is None
    if not torch.cuda.is_available():
        assert 'CUDA' in available['mamba_ssm'] and 'CUDA' in available['triton']


@pytest.mark.parametrize(
    'device, broken, expected',
    [
        ('cpu', [], 'cpu'),
        ('cpu', ['cpu'], 'torch'),
        ('cuda', [], 'triton'),
        ('cuda', ['mamba_ssm'], 'triton'),
        ('cuda', ['triton'], 'torch'),
        ('cuda', ['triton', 'mamba_ssm'], 'torch'),
        ('mps', [], 'torch'),
    ],
)
def test_auto_takes_what_fits_the_device(monkeypatch, device, broken, expected):
    for name in ('triton', 'mamba_ssm'):
        reason = 'broken' if name in broken else None
        monkeypatch.setitem(interface._UNAVAILABLE_REASON, name, lambda reason=reason: reason)
    monkeypatch.setattr(cpu_backend, 'load_error', lambda: 'broken' if 'cpu' in broken else None)
    assert interface._kernels('auto', device) is interface._KERNELS[expected]


@pytest.mark.skipif(not HAS_COMPILER, reason='no C++ compiler')
def test_an_exported_graph_chooses_where_it_runs(monkeypatch):
    """Recorded where the compiled kernel is, run where it is not."""

    class Scan(torch.nn.Module):
        def forward(self, *inputs):
            return selective_scan(*inputs)

    inputs = make_inputs(2, 6, 40, 4)
    program = torch.export.export(Scan(), tuple(inputs))
    used = []
    for name, kernels in interface._KERNELS.items():
        original = kernels.forward
        monkeypatch.setattr(kernels, 'forward', lambda *args, f=original, n=name: (used.append(n), f(*args))[1])
    expected = program.module()(*inputs)
    monkeypatch.setattr(cpu_backend, 'load_error', lambda: 'no compiler')
    assert_close(program.module()(*inputs), expected, 2e-6)
    assert used == ['cpu', 'torch']


def test_an_exported_graph_keeps_a_backend_that_was_named(monkeypatch):
    class Scan(torch.nn.Module):
        def forward(self, *inputs):
            return selective_scan(*inputs, backend='cpu')

    inputs = make_inputs(1, 2, 3, 2)
    monkeypatch.setitem(interface._UNAVAILABLE_REASON, 'cpu', lambda: None)
    program = torch.export.export(Scan(), tuple(inputs))
    monkeypatch.setitem(interface._UNAVAILABLE_REASON, 'cpu', lambda: 'no compiler')
    with pytest.raises(RuntimeError, match="backend 'cpu' is not available here: no compiler"):
        program.module()(*inputs)


def test_a_graph_without_states_has_no_gradient():
    class Scan(torch.nn.Module):
        def forward(self, *inputs):
            return selective_scan(*inputs)

    inputs = make_inputs(1, 2, 3, 2)
    program = torch.export.export(Scan(), tuple(inputs))
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match='recorded without gradients'):
        program.module()(*inputs).sum().backward()


def test_auto_runs():
    inputs = make_inputs(1, 4, 9, 2)
    assert_close(selective_scan(*inputs), evaluate(*inputs), 2e-6)


def test_unknown_backend_names_the_nearest():
    with pytest.raises(ValueError, match="unknown backend 'tritn'.*did you mean 'triton'"):
        selective_scan(*make_inputs(1, 2, 3, 2), backend='tritn')


def test_unavailable_backend_tells_the_reason(monkeypatch):
    monkeypatch.setitem(interface._UNAVAILABLE_REASON, 'cpu', lambda: 'no compiler')
    with pytest.raises(RuntimeError, match="backend 'cpu' is not available here: no compiler"):
        selective_scan(*make_inputs(1, 2, 3, 2), backend='cpu')


def test_backend_for_another_device():
    with pytest.raises(ValueError, match="backend 'mamba_ssm' takes tensors on 'cuda', these are on 'cpu'"):
        selective_scan(*make_inputs(1, 2, 3, 2), backend='mamba_ssm')


def test_mamba_ssm_takes_neither_float64_nor_large_states(monkeypatch):
    assert mamba_backend.unsupported_reason(*make_inputs(1, 2, 3, 2), state=2) is None
    assert 'float64' in mamba_backend.unsupported_reason(*make_inputs(1, 2, 3, 2, torch.float64), state=2)
    assert '256' in mamba_backend.unsupported_reason(*make_inputs(1, 2, 3, 2), state=300)
    install_mamba_ssm(monkeypatch, lambda *inputs: pytest.fail('called'))
    with pytest.raises(ValueError, match="backend 'mamba_ssm': its kernel does not compute in float64"):
        mamba_backend.selective_scan(*make_inputs(1, 2, 3, 2, torch.float64))


def install_mamba_ssm(monkeypatch, selective_scan_fn):
    """Stand in for the package, which needs a GPU."""
    package = type(sys)('mamba_ssm.ops.selective_scan_interface')
    package.selective_scan_fn = selective_scan_fn
    for name in ('mamba_ssm', 'mamba_ssm.ops', package.__name__):
        monkeypatch.setitem(sys.modules, name, package)


@pytest.mark.parametrize('types', [(torch.bfloat16,) * 5, (torch.bfloat16, *[torch.float32] * 4)])
def test_mamba_ssm_is_called_with_what_it_takes(monkeypatch, types):
    """Same signature, same demands as the package's."""

    def selective_scan_fn(u, delta, A, B, C):
        assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == torch.float32
        assert not torch.is_autocast_enabled()
        return reference.selective_scan(u, delta, A, B, C)

    install_mamba_ssm(monkeypatch, selective_scan_fn)
    inputs = [x.to(dtype) for x, dtype in zip(make_inputs(2, 6, 40, 4), types)]
    y = mamba_backend.selective_scan(*inputs)
    assert y.dtype == torch.bfloat16
    assert_close(y, evaluate(*inputs), 4e-3)


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('u', lambda x: x[0], r'u must be \(B, D, L\), got shape \(4, 9\)'),
        ('delta', lambda x: x[:, :1], r'delta must be \(B, D, L\) = \(2, 4, 9\).*got shape \(2, 1, 9\)'),
        ('A', lambda x: x[0], r'A must be \(D, N\), got shape'),
        ('A', lambda x: x[:3], r'A must be \(D, N\) = \(4, 3\)'),
        ('B', lambda x: x.mT, r'B must be \(B, N, L\) = \(2, 3, 9\).*got shape \(2, 9, 3\)'),
        ('C', lambda x: x[..., 1:], r'C must be \(B, N, L\) = \(2, 3, 9\)'),
        ('B', lambda x: x.long(), r'B must be of one of the types .*got torch.int64'),
        ('C', lambda x: x.to('meta'), r'one device, got u on cpu, C on meta'),
    ],
)
def test_wrong_inputs(name, change, message):
    inputs = dict(zip(NAMES, make_inputs(2, 4, 9, 3)))
    inputs[name] = change(inputs[name])
    with pytest.raises(ValueError, match=message):
        selective_scan(*inputs.values())


def test_anomaly_mode_tells_where(scan):
    inputs = make_inputs(2, 5, 40, 3)
    with torch.autograd.set_detect_anomaly(True):
        assert scan(*inputs).isfinite().all()
        poisoned = [x.clone() for x in inputs]
        poisoned[1][1, 2, 33] = float('nan')
        with pytest.raises(FloatingPointError, match=r'delta is not finite at index \[1, 2, 33\]'):
            scan(*poisoned)
        inputs[0].fill_(1), inputs[1].fill_(1), inputs[2].fill_(-1), inputs[3].fill_(1)
        inputs[2][4] = 30.0
        with pytest.raises(FloatingPointError, match=r'from step 3 on in batch element 0, channel 4'):
            scan(*inputs)


def test_tokens():
    u, delta, A, B, C = make_inputs(2, 5, 40, 3)
    tokens = [u.mT, delta.mT, A, B.mT, C.mT]
    assert torch.equal(scan_tokens(*tokens), selective_scan(u, delta, A, B, C).mT)
    assert scan_tokens(*tokens).is_contiguous()
    assert_close(scan_tokens(*tokens, backend='reference').mT, evaluate(u, delta, A, B, C), 2e-6)
    delta[1, 2, 33] = float('nan')
    with pytest.raises(FloatingPointError, match=r'delta is not finite at index \[1, 2, 33\]'):
        scan_tokens(*tokens)


# -------------------------------------------------------------------------------------------------- building the kernel


@pytest.fixture
def fresh_build(monkeypatch, tmp_path):
    """An empty cache for compiled kernels."""
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    cpu_backend._load.cache_clear()
    interface._warn_of_slow_scan.cache_clear()
    yield tmp_path / 'cache'
    cpu_backend._load.cache_clear()


@pytest.mark.parametrize(
    ('compiler', 'reason'),
    [('no-such-compiler', "no C.. compiler 'no-such-compiler'"), ('false', 'could not be compiled')],
)
def test_without_a_compiler_torch_takes_over(monkeypatch, fresh_build, caplog, compiler, reason):
    monkeypatch.setenv('CXX', compiler)
    inputs = make_inputs(1, 4, 9, 2)
    with caplog.at_level(logging.INFO, 'mmvisattn'):
        for _ in range(2):
            assert_close(selective_scan(*inputs), evaluate(*inputs), 2e-6)
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert re.search(f'plain PyTorch takes its place: .*{reason}', warning.getMessage())
    assert re.search(reason, available_backends()['cpu'])  # what was found out is told from then on
    assert not list(fresh_build.glob('*.so'))


@pytest.mark.skipif(not shutil.which('ninja'), reason='no ninja')
def test_a_kernel_that_was_named_and_does_not_compile_is_an_error(monkeypatch, fresh_build):
    monkeypatch.setenv('CXX', 'false')
    assert available_backends()['cpu'] is None  # as far as can be told without building it
    with pytest.raises(RuntimeError, match="backend 'cpu' is not available here: it could not be compiled"):
        selective_scan(*make_inputs(1, 4, 9, 2), backend='cpu')


@pytest.mark.parametrize('compiler', [None, 'env c++'])
def test_asking_does_not_build(monkeypatch, fresh_build, compiler):
    if compiler:
        monkeypatch.setenv('CXX', compiler)
    assert (available_backends()['cpu'] is None) == HAS_COMPILER
    assert not fresh_build.exists()


@pytest.mark.skipif(not HAS_COMPILER, reason='no C++ compiler')
def test_processes_that_build_at_once_do_not_disturb_each_other(fresh_build):
    program = (
        'import logging; logging.basicConfig(level="INFO", format="%(message)s")\n'
        'from mmvisattn.ops.selective_scan import cpu_backend\n'
        'print("reason", cpu_backend.load_error())'
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, '-c', program]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    outputs = [process.communicate()[0] for process in [subprocess.Popen(command, **pipes) for _ in range(2)]]
    assert all('reason None' in output for output in outputs), outputs
    assert sum(output.count('Compiled the CPU kernel') for output in outputs) == 1, outputs
    assert len(list(fresh_build.glob('*.so'))) == 1
    assert not [path for path in fresh_build.iterdir() if path.is_dir()]
