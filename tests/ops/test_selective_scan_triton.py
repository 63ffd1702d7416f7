import os
import subprocess
import sys
from pathlib import Path

from mmvisattn.ops import triton_support
from mmvisattn.ops.selective_scan.common import CHUNK

import pytest
import torch

triton = pytest.importorskip('triton')


@pytest.mark.parametrize(
    'interpreted',
    [
        pytest.param('1', id='interpreter'),
        pytest.param(
            '0', id='gpu', marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')]
        ),
    ],
)
def test_kernels(interpreted):
    """A process of its own, because Triton decides when it is imported whether it interprets."""
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', str(Path(__file__).with_name('triton_cases.py')), '-q', '-rfE'],
        env={**os.environ, 'TRITON_INTERPRET': interpreted},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'passed' in result.stdout and 'skipped' not in result.stdout


@pytest.mark.skipif(triton_support.INTERPRETED, reason='Triton is interpreting')
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('half', [False, True])
def test_kernels_compile(capability, half):
    """To machine code, without spilling, also where there is no GPU."""
    from mmvisattn.ops.selective_scan import triton_kernels

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.language import float32

    sequence = '*bf16' if half else '*fp32'
    types = dict.fromkeys(['u', 'delta', 'y', 'grad_y', 'grad_u', 'grad_delta'], sequence)
    types.update(dict.fromkeys(['dim', 'length', 'segment_length', 'slots'], 'i32'))
    values = dict(N=16, BLOCK_D=8, BLOCK_N=16, ACC=float32, REVERSE=True, CHUNK=CHUNK, SAVE_STATES=True)
    for kernel in (triton_kernels.segment_kernel, triton_kernels.forward_kernel, triton_kernels.backward_kernel):
        names = kernel.arg_names
        source = ASTSource(
            fn=kernel,
            signature={name: 'constexpr' if name in values else types.get(name, '*fp32') for name in names},
            constexprs={(i,): values[name] for i, name in enumerate(names) if name in values},
        )
        compiled = triton.compile(
            source, target=GPUTarget('cuda', capability, 32), options={'num_warps': 1, 'enable_fp_fusion': True}
        )
        assert compiled.asm['cubin']
        assert 'ex2.approx' in compiled.asm['ptx'] and '.local' not in compiled.asm['ptx']
