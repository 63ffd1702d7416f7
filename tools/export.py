"""Write a network as a graph that runs without its source: ONNX, or torch.export.

What is written takes images (B, channels, H, W) in float32 that are normalised already; with --part model, mean,
standard deviation and order of the colours are in the metadata of a file of ONNX. Height, width and the number of
images stay open, unless fixed.

--part neck      the maps of the backbone, after the neck if there is one (the default)
--part backbone  the maps of the backbone
--part model     of a segmentor the scores (B, classes, H, W) and the classes (B, H, W) of all pixels; of a detector the
                 outputs of its dense head, that is of a one-stage detector all of them and of a two-stage one those of
                 its region proposals, and the maps that it reads

The file is read again and computed beside the network, at three sizes if they are open: with onnxruntime, if that is
installed, or with torch. Where the two differ, it is removed.

Examples:
    python tools/export.py configs/fcvit/fcvit-b12_fpn_4xb8-40k_ade20k-512x512.py model.onnx --checkpoint iter_40000.pth
    python tools/export.py configs/fcvit/retinanet_fcvit-b12_fpn_1x_coco.py detector.onnx --part model --size 800x1344
    python tools/export.py DefocusMamba:base backbone.pt2 --format torch-export --fixed-size --size 1024x1024
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mmvisattn import cli
from mmvisattn.engine import report_checkpoint
from mmvisattn.errors import UserError
from mmvisattn.models.export import MAX_BATCH, record, size_step, write_onnx

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, of which `tools` is a package

from tools.analysis import networks
from tools.analysis.measure import parse_size

SUFFIX = {'onnx': '.onnx', 'torch-export': '.pt2'}
TOLERANCE = 1e-3  # of the largest value of an output


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', metavar='NETWORK', help=networks.NAMES)
    parser.add_argument('out', type=Path, help='the file to write, .onnx or .pt2')
    parser.add_argument('--checkpoint', help='the weights; default: random ones')
    parser.add_argument('--format', choices=list(SUFFIX), help='default: as the name of the file says')
    parser.add_argument('--part', choices=networks.PARTS, default='neck', help='what to write; default: neck')
    parser.add_argument('--size', type=parse_size, metavar='HxW', help='of the example; default: 512x512 or near it')
    parser.add_argument('--fixed-size', action='store_true', help='a graph for images of --size alone')
    parser.add_argument('--fixed-batch', type=int, metavar='N', help='a graph for N images; default: any number')
    parser.add_argument('--min-size', type=int, default=256, metavar='PIXELS', help='least side; default: %(default)s')
    parser.add_argument(
        '--max-size', type=int, default=4096, metavar='PIXELS', help='largest side; default: %(default)s'
    )
    parser.add_argument('--no-check', action='store_true', help='do not compute what was written beside the network')
    return parser.parse_args(argv)


# What is written


class Maps(nn.Module):
    """Backbone and neck, or the backbone.

    Args:
        network (nn.Module): Takes images and returns maps.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def names(self, outputs: Sequence[Tensor]) -> list[str]:
        """A name for each output."""
        return [f'map{i}' for i in range(len(outputs))]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, channels, H, W) → maps, each (B, C, h, w)."""
        outs = self.network(images)
        return (outs,) if isinstance(outs, Tensor) else tuple(outs)


class Segmentor(nn.Module):
    """A segmentor up to the classes.

    Args:
        network (nn.Module): A segmentor of mmseg.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        keep_sizes_open(network)

    def names(self, outputs: Sequence[Tensor]) -> list[str]:
        """A name for each output."""
        return ['scores', 'classes']

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) → (B, classes, H, W), and the number of the class (B, H, W)."""
        size = (images.shape[2], images.shape[3])
        meta = dict(img_shape=size, pad_shape=size, ori_shape=size, batch_input_shape=size)
        scores = self.network.encode_decode(images, [meta])
        if scores.shape[1] == 1:
            return scores, (scores.sigmoid() > self.network.decode_head.threshold).squeeze(1).long()
        return scores, scores.argmax(1)


def keep_sizes_open(network: nn.Module) -> None:
    """Let mmseg's upsampling take its size without ``int``, which would bind a graph to the size of the example."""
    from mmseg.models.utils import Upsample

    for module in network.modules():
        if isinstance(module, Upsample) and not module.size and isinstance(module.scale_factor, float):
            if module.scale_factor.is_integer():
                module.scale_factor = int(module.scale_factor)
                module.forward = partial(upsample, module)


def upsample(module: Any, x: Tensor) -> Tensor:
    """What mmseg's ``Upsample`` computes, for a whole factor."""
    size = [n * module.scale_factor for n in x.shape[2:]]
    return F.interpolate(x, size, mode=module.mode, align_corners=module.align_corners)


class Detector(nn.Module):
    """A detector up to the outputs of its dense head.

    Args:
        network (nn.Module): A detector of mmdet.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.two_stage = hasattr(network, 'rpn_head')
        self.head = network.rpn_head if self.two_stage else network.bbox_head

    def names(self, outputs: Sequence[Tensor]) -> list[str]:
        """A name for each output."""
        maps = self.num_maps if self.two_stage else 0
        kind = 'rpn' if self.two_stage else 'head'
        heads = [f'{kind}{i // self.num_levels}_level{i % self.num_levels}' for i in range(len(outputs) - maps)]
        return [*heads, *(f'map{i}' for i in range(maps))]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, channels, H, W) → what the head gives, level by level, and for a two-stage detector the maps."""
        maps = self.network.extract_feat(images)
        parts = list(self.head(maps))
        parts = [[part] if isinstance(part, Tensor) else list(part) for part in parts]
        self.num_levels, self.num_maps = len(parts[0]), len(maps)
        return (*chain(*parts), *(maps if self.two_stage else ()))


def wrap(network: nn.Module, part: str) -> Maps | Segmentor | Detector:
    """The part with images in and tensors out.

    Raises:
        UserError: If the model has no dense head.
    """
    if part != 'model' or not isinstance(network, BaseModel):
        return Maps(network)
    if hasattr(network, 'decode_head'):
        return Segmentor(network)
    head = getattr(network, 'rpn_head', getattr(network, 'bbox_head', None))
    if head is None or hasattr(network, 'encoder') or hasattr(network, 'decoder'):
        raise UserError(
            f'{type(network).__name__} has no dense head to end the graph at, as one-stage detectors and region '
            'proposals have; set --part neck'
        )
    return Detector(network)


# The check


def sizes_to_check(args: argparse.Namespace, step: int) -> list[tuple[int, int, int]]:
    """Numbers of images, heights and widths: one where they are fixed, or three."""
    height, width = args.size
    batches = [args.fixed_batch] * 3 if args.fixed_batch else [1, 2, 1]
    if args.fixed_size:
        return [(batch, height, width) for batch in dict.fromkeys(batches)]
    least, most = -(-args.min_size // step) * step, args.max_size // step * step
    other = [min(max(n + change * step, least), most) for n, change in ((height, 1), (width, -1))]
    return [(batches[0], height, width), (batches[1], least, other[0]), (batches[2], other[0], other[1])]


def reader(path: Path, kind: str) -> Callable[[Tensor], list[Tensor]] | None:
    """What computes the file, or None where nothing here can."""
    if kind == 'torch-export':
        module = torch.export.load(path).module()
        return lambda images: list(module(images))
    if importlib.util.find_spec('onnxruntime') is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})]


def compare(network: nn.Module, read: Callable, channels: int, sizes: list[tuple[int, int, int]]) -> Iterator[float]:
    """The largest difference at each size, as a share of the largest value of the output; classes count by pixels."""
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in sizes:
        images = torch.randn(batch, channels, height, width, generator=generator)
        with torch.no_grad():
            pairs = list(zip(network(images), read(images)))
        shares = [
            (a - b).abs().max() / a.abs().max().clamp(min=1e-6) if a.is_floating_point() else (a != b).float().mean()
            for a, b in pairs
        ]
        yield max(share.item() for share in shares)


def load(network: nn.Module, checkpoint: str, part: str) -> None:
    """Load weights, of a whole model for a part of it too.

    Raises:
        UserError: If they are of another network.
    """
    cli.check_file(checkpoint, 'checkpoint')
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = content.get('state_dict', content)
    if part != 'model' and any(name.startswith('backbone.') for name in state):
        prefix = '' if hasattr(network, 'backbone') else 'backbone.'
        own = ('backbone.', 'neck.') if not prefix else ('backbone.',)
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(own)}
    report_checkpoint(network, {'state_dict': state})
    load_state_dict(network, state)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Record, write, read again and compare; print a line for each."""
    args = parse_args(argv)
    kind = args.format or next((kind for kind, end in SUFFIX.items() if args.out.suffix == end), None)
    if kind is None or args.out.suffix != SUFFIX[kind]:
        raise UserError(f'{str(args.out)!r}: name the file {" or ".join(SUFFIX.values())}, as --format says')
    if not args.out.absolute().parent.is_dir():
        raise UserError(f'{str(args.out)!r}: there is no folder {str(args.out.parent)!r}')
    if args.fixed_batch is not None and not 1 <= args.fixed_batch <= MAX_BATCH:
        raise UserError(f'--fixed-batch {args.fixed_batch}: give a number from 1 to {MAX_BATCH}')
    torch.manual_seed(0)
    network = build(args)
    exported = wrap(network, args.part).eval()
    step = size_step(exported)
    args.size = args.size or (-(-512 // step) * step,) * 2
    channels = next((m.in_channels for m in network.modules() if hasattr(m, 'check_input')), 3)
    example = torch.randn(args.fixed_batch or 2, channels, *args.size)
    with torch.no_grad():
        names = exported.names(exported(example[:1]))
    try:
        program = record(
            exported, example, not args.fixed_size, args.fixed_batch is None, step, args.min_size, args.max_size
        )
    except UserError:
        raise
    except Exception as error:
        raise refusal(error, args) from error
    if kind == 'onnx':
        write_onnx(program, args.out, names, describe(network, args))
    else:
        torch.export.save(program, args.out)
    opened = 'any size' if not args.fixed_size else 'x'.join(map(str, args.size))
    limits = '' if args.fixed_size else f' from {args.min_size} to {args.max_size} pixels a side, multiples of {step},'
    print(f'{args.out}: {kind}, images of {opened}{limits} outputs: {", ".join(names)}')
    if not args.no_check:
        check(args, exported, kind, channels, step)


def build(args: argparse.Namespace) -> nn.Module:
    """The network with its weights; a network without a neck is its own."""
    part, name = args.part, args.name
    if part == 'neck' and networks.is_config(name):
        path = networks.config_path(name) if '::' in name else name
        part = 'neck' if cli.load_config(path).model.get('neck') is not None else 'backbone'
    network = networks.build(name, part, args.size or (512, 512))
    if args.checkpoint:
        load(network, args.checkpoint, part)
    return network


def refusal(error: Exception, args: argparse.Namespace) -> UserError:
    """What went wrong while the network was recorded, and what is left to do."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    ways = ([] if args.fixed_size else ['--fixed-size']) + (['--part neck'] if args.part == 'model' else [])
    told = f'; set {" or ".join(ways)}' if ways else ''
    return UserError(f'{args.name} cannot be recorded as a graph: {type(error).__name__}: {first}{told}')


def describe(network: Any, args: argparse.Namespace) -> dict[str, str]:
    """What the file says of itself."""
    from mmvisattn import __version__

    notes = {'mmvisattn': __version__, 'network': args.name, 'part': args.part}
    preprocessor = getattr(network, 'data_preprocessor', None)
    if getattr(preprocessor, '_enable_normalize', False):
        notes |= {key: str(getattr(preprocessor, key).flatten().tolist()) for key in ('mean', 'std')}
        notes['channels'] = (
            'RGB'
            if getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False))
            else 'BGR'
        )
    return notes


def check(args: argparse.Namespace, exported: nn.Module, kind: str, channels: int, step: int) -> None:
    """Compute what was written beside the network.

    Raises:
        UserError: If the two differ by more than rounding.
    """
    read = reader(args.out, kind)
    if read is None:
        print('not checked: onnxruntime is not installed (pip install onnxruntime)')
        return
    sizes = sizes_to_check(args, step)
    shares = compare(exported, read, channels, sizes)
    for batch, height, width in sizes:
        try:
            share = next(shares)
            told = f'differs by {share:.1e} of the largest value'
        except Exception as error:  # runtimes say in many ways that a graph does not fit an input
            share, told = float('inf'), f'{type(error).__name__}: {str(error).strip().splitlines()[0]}'
        print(f'{batch}×{channels}×{height}×{width}: {told}', flush=True)
        if not share <= TOLERANCE:
            args.out.unlink()
            way = (
                ''
                if args.fixed_size
                else '; a part of it keeps to some sizes: set --fixed-size, a larger --min-size or another --part'
            )
            raise UserError(f'the graph does not compute what the network does, and is removed again{way}')


if __name__ == '__main__':
    main()
