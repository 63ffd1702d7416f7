"""Measure over-focus: how much of the tokens the last one relies on, and how its layers attend, layer by layer.

For plain networks on sequences (B, L, C), ours and those of timm and the toolboxes, whose blocks hold their mixer as
`attn` or `mixer`. *Field* is the gradient of the norm of a token after the last block with respect to the tokens that
enter a block, without that token itself; *column* is what tokens receive of the attention in the block, beside what a
mean over the tokens seen would give them. A share is exp(entropy) over the number of tokens.

Example:
    python tools/analysis/over_focus.py DefocusViT:small timm:deit_small_patch16_224 --sizes 224x224 --json focus.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.visualization.over_focus import (
    attention_map,
    effective_share,
    mean_received,
    received,
    token_gradients,
    top_mass,
)

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import networks

MIXERS = ('attn', 'mixer')


def measure(network: nn.Module, image: Tensor, token: int = -1, queries: int = 8) -> list[dict[str, float]]:
    """The figures of each block.

    Args:
        network (nn.Module): The network, in evaluation mode.
        image (Tensor): (1, C, H, W).
        token (int): Number of the token whose field is measured. Defaults to the last.
        queries (int): How many tokens are asked for what they attend to. Defaults to 8.

    Raises:
        UserError: If there are no blocks on sequences of one length.
    """
    blocks = [m for m in network.modules() if any(isinstance(getattr(m, name, None), nn.Module) for name in MIXERS)]
    entered: list[Tensor] = []
    left: list[Tensor] = []
    mixed: list[tuple] = []
    handles = []
    for block in blocks:
        mixer = next(getattr(block, name) for name in MIXERS if hasattr(block, name))
        handles += [
            block.register_forward_pre_hook(lambda block, args: entered.append(args[0])),
            block.register_forward_hook(lambda block, args, out: left.append(out)),
            mixer.register_forward_hook(lambda mixer, args, out: mixed.append((mixer, args[0].detach()))),
        ]
    try:
        network(image.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not entered or len({x.shape for x in entered}) != 1 or entered[0].dim() != 3:
        raise UserError(f'{type(network).__name__} has no blocks on sequences of one length; give a plain network')
    length = entered[0].shape[1]
    if not -length <= token < length:
        raise UserError(f'--token is {token}; the network has tokens from {-length} to {length - 1}')
    others = torch.arange(length) != token % length
    fields = token_gradients(left[-1][:, token].norm(dim=-1), entered)
    asked = torch.linspace(1, length - 1, queries).long().unique().tolist()
    rows = []
    for number, (field, (mixer, x)) in enumerate(zip(fields, mixed)):
        attention = attention_map(mixer, x, asked)[:, 0]
        later = torch.arange(length) > torch.as_tensor(asked)[:, None]
        is_causal = not (attention[0] * later).any()
        base = mean_received(asked, length, is_causal).to(attention)
        rows.append(
            {
                'layer': number,
                'field share': effective_share(field[0, others]).item(),
                'field top 5 %': top_mass(field[0, others]).item(),
                'column share': effective_share(received(attention), base).item(),
            }
        )
    return rows


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure each network and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks.add_arguments(parser)
    parser.set_defaults(part='backbone')
    parser.add_argument('--token', type=int, default=-1, help='whose field is measured; default: the last')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures to this file')
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    report: dict[str, list[dict[str, float]]] = {}
    for name in args.names:
        for size in args.sizes:
            network = networks.build(name, args.part, size).eval()
            rows = measure(network, torch.randn(1, 3, *size), args.token)
            title = f'{name}, {size[0]}×{size[1]}'
            report[title] = rows
            print(f'\n{title}\n\n| {" | ".join(rows[0])} |\n|{"---|" * len(rows[0])}')
            for row in rows:
                cells = [str(value) if key == 'layer' else f'{value:.3f}' for key, value in row.items()]
                print(f'| {" | ".join(cells)} |')
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    main()
