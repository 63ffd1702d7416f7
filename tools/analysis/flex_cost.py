"""What FlexViT costs beside the same ViT on few and on all tokens: FLOPs, time and memory, side by side in one run.

Rows: the ViT on the shrunk image, FlexViT at several ratios of selected cells, and the ViT on the full image. FLOPs are
counted by torch's counter on the real forward, selection included. The variants are timed in turn, A B C A B C …, so
that a noisy machine hits all alike; the ratios are of medians. Memory is the peak above the weights and the image.
The last table gives the share of a hierarchical layer that it costs, once for all layers, to judge and choose cells, to
gather their pixels and positions, and to add to the map what became of them.

With ``--cells`` there is one table instead: how the cost of a given number of cells grows with the image, beyond that
of the ViT on the shrunk one.

Example:
    python tools/analysis/flex_cost.py --arch base --sizes 512x512 1024x1024 800x1344 --batches 1 2
    python tools/analysis/flex_cost.py --cells 16 --sizes 256x256 512x512 1024x1024 2048x2048
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.layers.cells import Tiling, add_tokens, gather_tokens
from mmvisattn.models.layers.selection import pool_to_cells

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.analysis.measure import exponent, parse_count, parse_size, peak_memory, times_in_turn


class PlainViT(nn.Module):
    """timm's ViT of the same size, on the image shrunk by ``zoom``.

    Args:
        arch (str): Name of a FlexViT.
        zoom (int): How much the image is shrunk; 1 for the full image.
    """

    def __init__(self, arch: str, zoom: int = 1) -> None:
        super().__init__()
        sizes = FlexViT.arch_settings[arch]
        self.zoom = zoom
        self.vit = VisionTransformer(
            embed_dim=sizes['embed_dims'],
            depth=sizes['depth'],
            num_heads=sizes['num_heads'],
            mlp_ratio=sizes['mlp_ratio'],
            num_classes=0,
            class_token=False,
            global_pool='avg',
            fc_norm=False,
            dynamic_img_size=True,
            dynamic_img_pad=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, L, C)."""
        return self.vit.forward_features(F.avg_pool2d(x, self.zoom))


def flops(step: Callable) -> int:
    """Floating-point operations of a step: matrix products and convolutions, two for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def forwards(
    args: argparse.Namespace, networks: dict[str, nn.Module], batch: int, size: tuple[int, int]
) -> dict[str, Callable]:
    """What is measured: a forward of each network on the same images."""
    x = torch.randn(batch, 3, *size, device=args.device)

    def step_of(network: nn.Module) -> Callable:
        def step() -> None:
            with torch.no_grad(), torch.autocast(args.device.type, torch.float16, enabled=args.amp):
                network(x)

        return step

    return {name: step_of(network) for name, network in networks.items()}


def costs(
    args: argparse.Namespace, variants: dict[str, nn.Module], batch: int, size: tuple[int, int]
) -> list[list[str]]:
    """The rows of the table of one input."""
    steps = forwards(args, variants, batch, size)
    counted = {name: flops(step) for name, step in steps.items()}
    memory = {name: peak_memory(step, args.device) for name, step in steps.items()}
    times = times_in_turn(steps, args.rounds, args.device, args.clock)
    last = list(variants)[-1]
    base = statistics.median(times[last])
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        rows.append([
            name,
            f'{counted[name] / 1e9:.1f}',
            f'{counted[name] / counted[last]:.0%}',
            reports.milliseconds(values, 0),
            f'{base / median:.2f}×',
            f'{memory[name]:.0f}',
        ])  # fmt: skip
    return rows


@torch.no_grad()
def overhead(args: argparse.Namespace, network: FlexViT, batch: int, size: tuple[int, int]) -> list[str]:
    """Cost of selection beside a hierarchical layer: a row of the last table."""
    side = network.patch_size * network.zoom * network.cell_size
    cell_grid = tuple(-(-n // side) for n in size)
    tiling = Tiling(tuple(n * side // network.patch_size for n in cell_grid), (network.cell_size * network.zoom,) * 2)
    low_grid = tuple(n // network.zoom for n in tiling.size)
    dim = network.norm.normalized_shape[0]

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, device=args.device)

    low, fused, positions = (draw(rows * columns, dim) for rows, columns in (low_grid, tiling.size, tiling.size))
    pixels = draw(cell_grid[0] * cell_grid[1], 3 * side**2)
    seen = draw(3, *(n * network.patch_size // network.sight for n in tiling.size))
    count = network.selector.count(cell_grid[0] * cell_grid[1]) * tiling.cell[0] * tiling.cell[1]
    both = draw(low.shape[1] + count, dim)

    def layer() -> None:
        with torch.autocast(args.device.type, torch.float16, enabled=args.amp):
            network.blocks[-1].forward_both(both, low.shape[1])

    def selection() -> None:
        with torch.autocast(args.device.type, torch.float16, enabled=args.amp):
            relevance = pool_to_cells(network.relevance(low, low_grid, None, seen), network.cell_size)
            chosen = network.selector(relevance)
            index, keep = tiling.locate(chosen)
            gather_tokens(pixels, chosen.indices)
            high = gather_tokens(positions, index)
            add_tokens(fused, index, high * chosen.gate(relevance, tiling.cell[0] * tiling.cell[1]), keep)

    times = times_in_turn(dict(layer=layer, selection=selection), args.rounds * 3, args.device, args.clock)
    share = statistics.median(part / whole for part, whole in zip(times['selection'], times['layer']))
    more_flops = flops(selection) / flops(layer)
    return [_shape(batch, size), f'{network.selector.ratio:.0%}', f'{more_flops:.2%}', f'{share:.1%}']


def growth(args: argparse.Namespace, flex: FlexViT, low: nn.Module, batch: int) -> Iterator[list[str]]:
    """What a given number of cells costs beyond the ViT on the shrunk image, and how that grows with the pixels."""
    more_flops, more_time = [], []
    for size in args.sizes:
        side = flex.patch_size * flex.zoom * flex.cell_size
        flex.selector.ratio = min(args.cells / math.prod(-(-n // side) for n in size), 1.0)
        steps = forwards(args, dict(flex=flex, low=low), batch, size)
        more_flops.append(flops(steps['flex']) - flops(steps['low']))
        times = times_in_turn(steps, args.rounds, args.device, args.clock)
        more_time.append(statistics.median(a - b for a, b in zip(times['flex'], times['low'])))
    pixels = [math.prod(size) for size in args.sizes]
    for name, values, unit in (('GFLOPs', more_flops, 1e9), ('ms', more_time, 1e-3)):
        powers = [
            f'{exponent(pixels[i:], values[i:]):.2f}' if min(values[i:]) > 0 and len(pixels) > 1 else '–'
            for i in (0, -2)
        ]
        yield [name, *(f'{value / unit:.1f}' for value in values), *powers]


def _shape(batch: int, size: tuple[int, int]) -> str:
    return f'{batch}×3×{size[0]}×{size[1]}'


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='base', choices=list(FlexViT.arch_settings), help='default: base')
    parser.add_argument('--zoom', type=int, default=2, help='default: 2')
    parser.add_argument('--ratios', type=float, nargs='+', default=(0.1, 0.25, 0.5, 1.0), help='default: .1 .25 .5 1')
    parser.add_argument(
        '--sizes', type=parse_size, nargs='+', default=[(1024, 1024)], metavar='HxW', help='default: 1024x1024'
    )
    parser.add_argument('--batches', type=parse_count, nargs='+', default=(1,), help='images a batch; default: 1')
    parser.add_argument('--cells', type=parse_count, help='chosen cells, whatever the size; in place of --ratios')
    parser.add_argument('--amp', action='store_true', help='half precision, on a GPU')
    reports.add_clock(parser)
    reports.add_arguments(parser, rounds=5)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    ratios = args.ratios if args.cells is None else args.ratios[:1]
    flex = {ratio: FlexViT(args.arch, zoom=args.zoom, select_ratio=ratio) for ratio in ratios}
    variants = {f'ViT, 1/{args.zoom} of the side': PlainViT(args.arch, args.zoom)}
    variants |= {f'FlexViT, {ratio:.0%}': network for ratio, network in flex.items()}
    variants['ViT, full'] = PlainViT(args.arch)
    for network in variants.values():
        network.eval().to(args.device)

    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    if args.cells is not None:
        low, network, _ = variants.values()
        for batch in args.batches:
            columns = [f'images a batch: {batch}', *(f'{height}×{width}' for height, width in args.sizes)]
            columns += ['exponent', 'of the last two sizes']
            title = f'{args.arch}, zoom {args.zoom}, {args.cells} cells: beyond the ViT on the shrunk image'
            reports.add_table(report, title, columns, list(growth(args, network, low, batch)))
        reports.write(report, args.json)
        return
    inputs = [(batch, size) for size in args.sizes for batch in args.batches]
    columns = ['network', 'GFLOPs', 'of full', 'ms (min–max)', 'speed-up over full', 'peak MiB']
    for batch, size in inputs:
        title = f'{args.arch}, zoom {args.zoom}, {"float16" if args.amp else "float32"}, {_shape(batch, size)}'
        reports.add_table(report, title, columns, costs(args, variants, batch, size))
    rows = [overhead(args, network, batch, size) for batch, size in inputs for network in flex.values()]
    reports.add_table(report, 'What selection costs beside a layer', ['input', 'selected', 'FLOPs', 'time'], rows)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
