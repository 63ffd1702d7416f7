import os
import subprocess
import sys
from pathlib import Path

from mmvisattn.ops import triton_support

import pytest
import torch
from packaging.version import Version

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
    cases = str(Path(__file__).with_name('depthwise_triton_cases.py'))
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', cases, '-q', '-rfE'],
        env={**os.environ, 'TRITON_INTERPRET': interpreted},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'passed' in result.stdout


@pytest.mark.skipif(triton_support.INTERPRETED, reason='Triton is interpreting')
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('channels_last', [False, True])
def test_kernels_compile(capability, channels_last):
    """To machine code, without spilling or a detour through shared memory at each tap; also without a GPU."""
    from mmvisattn.ops.depthwise_conv import triton_kernels

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.language import float32

    pointers = {'x', 'weight', 'bias', 'out', 'grad'}
    tiles = {
        'convolution_kernel': dict(ROWS=4, BLOCK_X=8 if channels_last else 128, BLOCK_C=32 if channels_last else 1),
        'weight_gradient_kernel': dict(BLOCK_Y=16, BLOCK_X=4, LANES=32, CHANNELS_LAST=channels_last),
    }
    for name, tile in tiles.items():
        kernel = getattr(triton_kernels, name)
        values = dict(KERNEL_Y=11, KERNEL_X=11, HAS_BIAS=True, ACC=float32, **tile)
        types = {'parts': '*fp32', **dict.fromkeys(pointers, '*bf16')}
        source = ASTSource(
            fn=kernel,
            signature={arg: 'constexpr' if arg in values else types.get(arg, 'i32') for arg in kernel.arg_names},
            constexprs={(i,): values[arg] for i, arg in enumerate(kernel.arg_names) if arg in values},
        )
        compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options={'num_warps': 1})
        assert compiled.asm['cubin']
        assert 'fma.rn.f32' in compiled.asm['ptx'] and '.local' not in compiled.asm['ptx']
        # The other kernel brings its sums into the order of memory at the end; Triton 3.3 takes the detour in both.
        if name == 'convolution_kernel' and Version(triton.__version__) >= Version('3.9'):
            assert 'st.shared' not in compiled.asm['ptx']
