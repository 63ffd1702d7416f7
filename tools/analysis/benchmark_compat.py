"""The operators that stand in for those of a compiled mmcv, beside these, on the CPU: time, forward and backward.

Both are called through ``mmcv.ops``, as heads call them, in an environment with a compiled mmcv (`make test-compiled`
makes one). Sizes are those of a detector on an image of 800 × 1344. Roi pooling, deformable attention and the focal
losses are missing: a compiled mmcv has them on CUDA alone.

What is compared takes turns, A B A B …; times are medians with minimum and maximum of all rounds, ratios of medians.

Example:
    .venv-compiled/bin/python tools/analysis/benchmark_compat.py --rounds 5 --clock cpu
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

from mmvisattn import cli
from mmvisattn.compat import mmcv_ext
from mmvisattn.errors import UserError

import torch
from mmcv.ops import deform_conv2d, modulated_deform_conv2d, nms, roi_align, soft_nms
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.analysis.measure import times_in_turn

IMAGE = (800, 1344)
CHANNELS = 256
BOXES = 1000
STRIDE = 16


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Boxes of all sizes in the image, as x1, y1, x2, y2."""
    height, width = IMAGE
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sides = 16 * 32 ** torch.rand(count, 2, generator=generator)
    return torch.cat([centres - sides / 2, centres + sides / 2], 1)


def cases() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Operators with their inputs; those that take a gradient train as well."""
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator)
    boxes, scores = random_boxes(BOXES, generator), torch.rand(BOXES, generator=generator)
    rois = torch.cat([torch.zeros(BOXES // 2, 1), boxes[: BOXES // 2]], 1)
    size = [side // STRIDE for side in IMAGE]
    maps = randn(1, CHANNELS, *size).requires_grad_()
    weight = (0.02 * randn(CHANNELS, CHANNELS, 3, 3)).requires_grad_()
    offset = (2 * randn(1, 18, *size)).requires_grad_()
    mask = torch.rand(1, 9, *size, generator=generator).requires_grad_()
    bias = randn(CHANNELS).requires_grad_()
    return {
        f'nms, {BOXES} boxes': (lambda *x: nms(*x, 0.7)[0], [boxes, scores]),
        f'soft_nms, {BOXES} boxes': (lambda *x: soft_nms(*x, min_score=0.05)[0], [boxes, scores]),
        f'roi_align, {len(rois)} boxes, 7×7': (
            lambda x: roi_align(x, rois, (7, 7), 1 / STRIDE, 0, 'avg', True),
            [maps],
        ),
        'deform_conv2d, 3×3': (lambda *x: deform_conv2d(*x, 1, 1), [maps, offset, weight]),
        'modulated_deform_conv2d, 3×3': (
            lambda *x: modulated_deform_conv2d(*x, 1, 1),
            [maps, offset, mask, weight, bias],
        ),
    }


def use(ext: ModuleType | SimpleNamespace) -> None:
    """Let all of ``mmcv.ops`` run on one module of operators."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            module.ext_module = ext


def steps_of(
    operator: Callable[..., Tensor], inputs: Sequence[Tensor], exts: dict[str, object]
) -> dict[str, dict[str, Callable[[], object]]]:
    """A forward, and where there is a gradient a training step, on each module of operators."""

    def forward(ext: object) -> None:
        use(ext)
        with torch.no_grad():
            operator(*inputs)

    def train(ext: object) -> None:
        use(ext)
        out = operator(*inputs)
        torch.autograd.grad(out, inputs, out.detach())

    kinds = {'forward': forward, **({'training': train} if inputs[0].requires_grad else {})}
    return {kind: {name: partial(step, ext) for name, ext in exts.items()} for kind, step in kinds.items()}


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reports.add_arguments(parser)
    reports.add_clock(parser)
    parser.set_defaults(device=torch.device('cpu'))
    args = parser.parse_args(argv)
    if args.device.type != 'cpu':
        raise UserError(f'--device {args.device}: this measures on the CPU; leave it out')
    if not mmcv_ext.compiled():
        raise UserError('mmcv has no compiled operators here; `make test-compiled` makes an environment that has them')
    import mmcv._ext as compiled

    exts = {'compiled': compiled, 'ours': SimpleNamespace(**mmcv_ext.supplied())}
    rows = []
    for name, (operator, inputs) in cases().items():
        row = [name]
        for steps in steps_of(operator, inputs, exts).values():
            times = times_in_turn(steps, args.rounds, args.device, args.clock)
            theirs, ours = (statistics.median(times[key]) for key in exts)
            row += [*(reports.milliseconds(times[key]) for key in exts), f'{ours / theirs:.2f}']
        rows.append(row + ['–'] * (7 - len(row)))
    use(compiled)
    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    columns = [f'{step}: {column}' for step in ('forward', 'training') for column in (*exts, 'ours / compiled')]
    size = '×'.join(map(str, IMAGE))
    reports.add_table(report, f'float32, one image of {size}, {CHANNELS} channels', ['operator', *columns], rows)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
