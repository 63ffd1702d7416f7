"""Measure over-focus: how much of the tokens one of them relies on, and how layers attend, layer by layer.

For networks of tokens, ours and those of timm and the toolboxes, whose blocks hold their mixer as `attn` or `mixer`,
with random weights or trained ones, on noise or pictures. A share is exp(entropy) over the number of tokens. Columns:

- *field*: gradient of the norm of a token after the last block with respect to the tokens that enter a block, without
  that token itself where the block has as many tokens as the last one;
- *column*: what tokens receive of the attention in the block, beside what a mean over the tokens seen would give them;
  of each window by itself where the mixer is given windows;
- *diversity* of the heads (of Mamba: of the groups of channels that are normalised together): the Jensen–Shannon
  divergence of what they attend to, over the logarithm of their number;
- *gradient* (`--loss`): gradient of the training loss with respect to the tokens that enter the block.

Networks with bandpass filters get a table of these too. With `--out-dir` the fields are drawn over each picture.

Examples:
    python tools/analysis/over_focus.py DefocusViT:small timm:deit_small_patch16_224 --sizes 224x224 --json focus.json
    python tools/analysis/over_focus.py DefocusViT:small --checkpoint CHECKPOINT --images street.jpg --out-dir pictures
    python tools/analysis/over_focus.py CONFIG --checkpoint CHECKPOINT --loss 8
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmvisattn import cli
from mmvisattn.checkpoint import load_pretrained
from mmvisattn.errors import UserError
from mmvisattn.models.backbones.sequence_backbone import SequenceBackbone
from mmvisattn.models.layers.patch_sequence import to_map
from mmvisattn.visualization.filters import bandpass_filters
from mmvisattn.visualization.over_focus import (
    attention_map,
    before,
    diversity,
    effective_share,
    half_power_width,
    mean_received,
    received,
    token_gradients,
    top_mass,
)
from mmvisattn.visualization.panels import caption, fit, join_panels, overlay

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import networks
from tools.analysis.measure import parse_count
from tools.analysis.subjects import IMAGENET, Subject, check_images, stem

MIXERS = ('attn', 'mixer')
PANEL = 160  # longer side of a picture of a layer, pixels


@dataclass
class Trace:
    """What went through the blocks of a network in a forward.

    Args:
        entered (list[Tensor]): Tokens that entered each block, (B, …, C).
        left (list[Tensor]): Tokens that left it.
        mixed (list[tuple]): Mixer of each block, the tokens it was given, and the function that it was of these.
    """

    entered: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)
    mixed: list[tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]] = field(default_factory=list)


@contextmanager
def traced(network: nn.Module) -> Iterator[Trace]:
    """Note what goes through the blocks.

    Raises:
        UserError: If there are no blocks of tokens.
    """
    trace, handles = Trace(), []

    def note_mixer(mixer: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        trace.mixed.append((mixer, args[0].detach(), lambda x: mixer(x, *args[1:], **kwargs)))

    for block in network.modules():
        mixer = next((m for m in (getattr(block, name, None) for name in MIXERS) if isinstance(m, nn.Module)), None)
        if mixer is not None:
            handles += [
                block.register_forward_pre_hook(lambda block, args: trace.entered.append(args[0])),
                block.register_forward_hook(lambda block, args, out: trace.left.append(out)),
                mixer.register_forward_hook(note_mixer, with_kwargs=True),
            ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
    is_of_tokens = [
        x.dim() in (3, 4) and given.dim() == 3 and given.shape[-1] == x.shape[-1]
        for x, (_, given, _) in zip(trace.entered, trace.mixed)
    ]
    if not (is_of_tokens and all(is_of_tokens)):
        raise UserError(f'{type(network).__name__} has no blocks of tokens; give a network with attention over tokens')


def token_fields(trace: Trace, token: int) -> list[Tensor]:
    """Gradient of a token after the last block with respect to those that enter each, itself as 0: (B, …) a block."""
    last = trace.left[-1].flatten(1, -2)
    length = last.shape[1]
    if not -length <= token < length:
        raise UserError(f'--token is {token}; the network has tokens from {-length} to {length - 1}')
    fields = token_gradients(last[:, token].norm(dim=-1), trace.entered)
    own = torch.arange(length, device=last.device) == token % length
    return [x.masked_fill(own.view(x.shape[1:]), 0) if x[0].numel() == length else x for x in fields]


def heads_of(mixer: nn.Module, mix: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], int] | None:
    """What a mixer makes of tokens before its last projection, and the heads that lie side by side there.

    None of a mixer whose heads are not known.
    """
    inner = mixer if hasattr(mixer, 'num_heads') or hasattr(mixer, 'out_proj') else getattr(mixer, 'w_msa', mixer)
    projection = getattr(inner, 'out_proj', getattr(inner, 'proj', None))
    if not isinstance(projection, nn.Linear):
        return None
    size = getattr(inner, 'group_norm_size', None)
    groups = projection.in_features // size if size else getattr(inner, 'num_heads', None)
    if not groups:
        return None
    return before(projection, mix), groups


def attention_figures(
    mixer: nn.Module, x: Tensor, mix: Callable[[Tensor], Tensor], queries: int, windows: bool
) -> dict[str, float | None]:
    """How a mixer attends, mean over the sequences (windows) it was given.

    Args:
        mixer (nn.Module): The mixer.
        x (Tensor): What it was given, (B, L, C).
        mix (Callable[[Tensor], Tensor]): What it makes of them.
        queries (int): How many tokens are asked for what they attend to.
        windows (bool): The sequences are windows, some of them masked.
    """
    length = x.shape[1]
    asked = torch.linspace(1, length - 1, queries).long().unique().tolist()
    attention = attention_map(mix, x, asked)[:, 0]
    if windows:
        base = received((attention > 0).to(attention))
    else:
        later = torch.arange(length) > torch.as_tensor(asked)[:, None]
        base = mean_received(asked, length, causal=not (attention * later).any()).to(attention)
    heads = heads_of(mixer, mix)
    return {
        'column share': effective_share(received(attention), base).mean().item(),
        'diversity': None if heads is None else diversity(attention_map(heads[0], x, asked, heads[1])).mean().item(),
    }


def measure(
    network: nn.Module, images: Tensor, token: int = -1, queries: int = 8
) -> tuple[list[dict[str, float | None]], list[Tensor]]:
    """The figures of each block, means over the images, and the fields.

    Args:
        network (nn.Module): The network, in evaluation mode.
        images (Tensor): (B, C, H, W).
        token (int): Number of the token whose field is measured. Defaults to the last.
        queries (int): How many tokens are asked for what they attend to. Defaults to 8.

    Returns:
        tuple[list[dict[str, float | None]], list[Tensor]]: Of each block the figures, None for what it has not, and the
        field (B, L) or (B, rows, columns).

    Raises:
        UserError: If there are no blocks of tokens, or no such token.
    """
    with traced(network) as trace:
        network(images.clone().requires_grad_())
    fields, rows = token_fields(trace, token), []
    for number, (values, (mixer, x, mix)) in enumerate(zip(fields, trace.mixed)):
        others = values.flatten(1)
        if others.shape[1] == trace.left[-1].flatten(1, -2).shape[1]:
            keep = torch.arange(others.shape[1]) != token % others.shape[1]
            others = others[:, keep]
        rows.append(
            {
                'layer': number,
                'field share': effective_share(others).mean().item(),
                'field top 5 %': top_mass(others).mean().item(),
                **attention_figures(mixer, x, mix, queries, windows=len(x) > len(images)),
            }
        )
    return rows, fields


def measure_loss(subject: Subject, count: int) -> list[dict[str, float]]:
    """The gradient map of each block of the backbone, mean over images of the training set.

    Args:
        subject (Subject): A model of a config.
        count (int): How many images, the first of the set as its pipeline gives them.
    """
    cli.check_data(subject.cfg, 'train_dataloader')
    init_default_scope(subject.cfg.default_scope)
    torch.manual_seed(0)  # the pipeline may flip and crop
    np.random.seed(0)
    dataset = DATASETS.build(subject.cfg.train_dataloader.dataset)
    shares: list[list[tuple[float, float]]] = []
    for index in range(min(count, len(dataset))):
        data = subject.model.data_preprocessor(pseudo_collate([dataset[index]]), True)
        data['inputs'].requires_grad_()
        with traced(subject.backbone) as trace:
            loss, _ = subject.model.parse_losses(subject.model(**data, mode='loss'))
        maps = [x.flatten(1) for x in token_gradients(loss, trace.entered)]
        shares.append([(effective_share(x).item(), top_mass(x).item()) for x in maps])
    means = torch.tensor(shares).mean(0).tolist()
    return [{'gradient share': share, 'gradient top 5 %': top} for share, top in means]


def filter_rows(network: nn.Module) -> list[dict]:
    """The bandpass filters of each layer: decay λ, frequencies θ and width of the band at half power of each head."""
    return [
        {
            'layer': number,
            'λ': rate.flatten().tolist(),
            'θ': freq.flatten().tolist(),
            'half-power width': half_power_width(rate.flatten()).tolist(),
        }
        for number, (_, rate, freq) in enumerate(bandpass_filters(network))
    ]


def draw_fields(
    network: nn.Module, picture: np.ndarray, fields: Sequence[Tensor], shares: Sequence[float]
) -> np.ndarray:
    """The fields of each layer over a picture, on a logarithmic scale of four decades.

    Args:
        network (nn.Module): The network.
        picture (np.ndarray): What it was shown, (H, W, 3), BGR.
        fields (Sequence[Tensor]): Of each layer (L,), or (rows, columns).
        shares (Sequence[float]): Their effective shares.
    """
    height, width = picture.shape[:2]
    panels = [fit(picture, PANEL)]
    for number, (values, share) in enumerate(zip(fields, shares)):
        if values.dim() == 1 and isinstance(network, SequenceBackbone):
            image = torch.empty(height, width)
            values = to_map(values[None, :, None], *network.patch_embed.layout(image))[0, 0]
        elif values.dim() == 1:
            values = values[getattr(network, 'num_prefix_tokens', 0) :]
            rows = round((len(values) * height / width) ** 0.5)
            if len(values) % max(rows, 1):
                raise UserError(f'{type(network).__name__}: {len(values)} tokens are no grid; leave --out-dir away')
            values = values.view(rows, -1)
        shown = np.log10(np.maximum(values.numpy(), float(values.max()) * 1e-4 + 1e-30))
        drawn = overlay(picture, shown, (height / shown.shape[0], width / shown.shape[1]))
        panels.append(caption(fit(drawn, PANEL), f'layer {number}: {share:.1%}'))
    panels[0] = caption(panels[0], 'relied on by the token')
    return join_panels(panels)


def read_images(paths: Sequence[str], size: tuple[int, int]) -> list[np.ndarray]:
    """Pictures of a size, (H, W, 3), BGR."""
    check_images(paths)
    return [cv2.resize(cv2.imread(path), size[::-1], interpolation=cv2.INTER_AREA) for path in paths]


def normalise(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures for OpenCV as images of a network, (B, 3, H, W)."""
    mean, std = IMAGENET
    images = (np.stack(pictures)[..., ::-1] / 255 - mean) / std
    return torch.from_numpy(images).float().permute(0, 3, 1, 2)


def print_rows(title: str, rows: Sequence[dict]) -> None:
    """A table of rows with the same keys."""

    def shown(value: object) -> str:
        if isinstance(value, list):
            low, high = min(value), max(value)
            return f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}'
        return f'{value:.3f}' if isinstance(value, float) else '–' if value is None else str(value)

    print(f'\n{title}\n\n| {" | ".join(rows[0])} |\n|{"---|" * len(rows[0])}')
    for row in rows:
        print(f'| {" | ".join(map(shown, row.values()))} |')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks.add_arguments(parser, size=(224, 224))
    parser.set_defaults(part='backbone')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights of the network; default: random ones')
    parser.add_argument(
        '--images', nargs='+', default=[], metavar='FILE', help='pictures, brought to --sizes; default: one of noise'
    )
    parser.add_argument('--token', type=int, default=-1, help='whose field is measured; default: the last')
    parser.add_argument(
        '--loss', type=parse_count, metavar='N', help='measure N images of the training set of a config by its loss too'
    )
    parser.add_argument('--out-dir', type=Path, metavar='DIR', help='draw the fields over --images, into this folder')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures to this file')
    args = parser.parse_args(argv)
    if args.checkpoint and len(args.names) > 1:
        raise UserError(f'--checkpoint is for one network; there are {len(args.names)} names')
    if args.out_dir and not args.images:
        raise UserError('--out-dir: there is nothing to draw over; give --images')
    for name in args.names:
        if args.loss and not networks.is_config(name):
            raise UserError(f'--loss: {name!r} has no training loss; give a config')
    return args


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure each network, print its tables and draw its fields."""
    args = parse_args(argv)
    if args.checkpoint:
        cli.check_file(args.checkpoint, 'checkpoint')
    report: dict[str, dict[str, list[dict]]] = {}
    for name in args.names:
        subject = Subject(name, args.checkpoint) if args.loss else None
        losses = measure_loss(subject, args.loss) if subject else []
        for size in args.sizes:
            torch.manual_seed(0)
            network = subject.backbone if subject else networks.build(name, args.part, size).eval()
            if args.checkpoint and not subject:
                load_pretrained(network, args.checkpoint)
            pictures = read_images(args.images, size)
            torch.manual_seed(0)
            rows, fields = measure(network, normalise(pictures) if pictures else torch.randn(1, 3, *size), args.token)
            if losses:
                rows = [row | loss for row, loss in zip(rows, losses)]
            title = f'{name}, {size[0]}×{size[1]}'
            report[title] = dict(layers=rows, filters=filter_rows(network))
            print_rows(title, rows)
            if report[title]['filters']:
                print_rows(f'{title}: filters, radians a token', report[title]['filters'])
            if args.out_dir:
                args.out_dir.mkdir(parents=True, exist_ok=True)
                for index, (path, picture) in enumerate(zip(args.images, pictures)):
                    own = [values[index] for values in fields]
                    sheet = draw_fields(network, picture, own, [effective_share(v.flatten()).item() for v in own])
                    words = ''.join(letter if letter.isalnum() else '-' for letter in Path(name).stem)
                    target = args.out_dir / f'{stem(path)}-{words}-{size[0]}x{size[1]}.jpg'
                    cv2.imwrite(str(target), sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])
                    print(f'\n{target}')
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    main()
