"""Train small De-focus networks with and without the remedies, and measure over-focus in them.

The task needs the whole image at one token: which of eight kinds of things are in it, and how many things, read from
a class token at the end of 196 raster tokens. The things of a kind are in one third of the sequence, whichever. Every
network has 12 layers of 64 channels and learned absolute positions, and is one of our backbones from the patch
embedding to the last norm; scenes are drawn anew for each step, so that there is nothing to learn by heart. What is
finished is kept in the file of the results: a second run goes on where the first one stopped.

Example:
    python tools/analysis/over_focus_study.py --rows retnet vit 'vit, not causal' --seeds 0 1 2
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusRetNet, DefocusViT
from mmvisattn.visualization.over_focus import (
    attention_map,
    diversity,
    effective_share,
    mean_received,
    received,
    token_gradients,
    top_mass,
)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.driver import ROOT

GRID, PATCH, KINDS = 14, 16, 8
HERD = (5, 10)  # fewest things of a kind that is there, and more than the most
ARCH = dict(embed_dims=64, depth=12, num_heads=2, mlp_ratio=2)
LAYERS = (3, 6, 9, 11)
THIRDS = ('first', 'middle', 'last')
TEST_SEED, TEST_SCENES, MEASURED_SCENES = 10_000, 1024, 32


@dataclass(frozen=True)
class Row:
    """What sets a row apart.

    Args:
        form (str): ``'retnet'`` or ``'vit'``.
        causal (bool): Hide later tokens.
        decay (bool): Have the decay.
        rotation (bool): Have the rotation.
        drop_path (bool): Raise drop path linearly over the training, from 0.1 to 0.5 in the last layer.
        auxiliary (bool): Add the loss of the same questions to the mean of all tokens but the class token.
    """

    form: str
    causal: bool = True
    decay: bool = False
    rotation: bool = False
    drop_path: bool = False
    auxiliary: bool = False


def rows_of(form: str) -> dict[str, Row]:
    """The rows of a causal form: the filters, and the other remedies without and with both."""
    filters = {
        '': {},
        ', decay': dict(decay=True),
        ', rotation': dict(rotation=True),
        ', both': dict(decay=True, rotation=True),
    }
    others = {
        ', drop path': dict(drop_path=True),
        ', auxiliary': dict(auxiliary=True),
        ', drop path, auxiliary': dict(drop_path=True, auxiliary=True),
    }
    rows = {form + name: Row(form, **options) for name, options in filters.items()}
    for name in ('', ', both'):
        rows |= {form + name + other: Row(form, **filters[name], **options) for other, options in others.items()}
    return rows


ROWS = {**rows_of('retnet'), **rows_of('vit'), 'vit, not causal': Row('vit', causal=False)}


# Scenes


@dataclass
class Scenes:
    """Scenes and what is to be told of them.

    Args:
        images (Tensor): (B, 3, 224, 224).
        present (Tensor): Whether a thing of each kind is there, (B, KINDS), float.
        count (Tensor): Number of things over its mean, (B,).
        where (Tensor): Number of things of each kind in each third of the sequence, (B, KINDS, 3).
    """

    images: Tensor
    present: Tensor
    count: Tensor
    where: Tensor


def draw(batch: int, generator: torch.Generator) -> Scenes:
    """Discs on grey ground with grain: some kinds, each a herd within a third of the sequence, and as many grey ones.

    Each disc has a patch of its own; the kinds are told by their hue.
    """
    side, tokens = GRID * PATCH, GRID**2
    images = 0.1 * torch.randn(batch, 1, 1, 1, generator=generator)
    images = images + 0.2 * torch.randn(batch, 3, side, side, generator=generator)
    patches = images.unflatten(2, (GRID, PATCH)).unflatten(4, (GRID, PATCH)).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(batch, tokens, 3, PATCH, PATCH).clone()

    present = torch.rand(batch, KINDS, generator=generator) < 0.5
    size = torch.randint(*HERD, (batch, KINDS), generator=generator) * present
    third = torch.randint(3, (batch, KINDS), generator=generator)
    kinds = torch.full((batch, tokens), -1)  # of the thing at each token, KINDS for a grey one, -1 for none
    for sample in range(batch):
        free = torch.randperm(tokens, generator=generator)
        for kind in torch.randperm(KINDS, generator=generator).tolist():
            mine = free[(free * 3 // tokens == third[sample, kind]) & (kinds[sample, free] < 0)]
            kinds[sample, mine[: size[sample, kind]]] = kind
        grey = free[kinds[sample, free] < 0]
        kinds[sample, grey[: int(size[sample].sum())]] = KINDS

    hue = (kinds + 0.5 * torch.rand(kinds.shape, generator=generator) - 0.25) * (2 * torch.pi / KINDS)
    colour = torch.cos(hue.unsqueeze(-1) - torch.arange(3) * (2 * torch.pi / 3))  # (B, L, 3)
    colour = colour * (kinds < KINDS).unsqueeze(-1)
    colour = colour + 0.4 * torch.randn(batch, tokens, 1, generator=generator)
    radius = 5 + 3 * torch.rand(batch, tokens, 1, 1, generator=generator)
    centre = PATCH / 2 + 2 * torch.rand(2, batch, tokens, 1, 1, generator=generator) - 1
    position = torch.arange(PATCH) + 0.5
    disc = (position[:, None] - centre[0]) ** 2 + (position - centre[1]) ** 2 < radius**2  # (B, L, 16, 16)
    disc = (disc & (kinds >= 0)[..., None, None]).unsqueeze(2)
    patches = torch.where(disc, colour[..., None, None], patches)
    images = patches.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, side, side)

    where = F.one_hot(torch.where(kinds < 0, KINDS, kinds), KINDS + 1)[..., :KINDS]  # (B, L, KINDS)
    where = torch.stack([where[:, torch.arange(tokens) * 3 // tokens == i].sum(1) for i in range(3)], -1)
    count = where.sum((1, 2)) / (KINDS * sum(HERD) / 4)
    return Scenes(images, (where.sum(-1) > 0).float(), count, where)


# Network and training


class Probe(nn.Module):
    """A backbone of ours with learned positions and a class token at the end, and heads on that.

    Args:
        row (Row): What it has.
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        kind = dict(retnet=DefocusRetNet, vit=DefocusViT)[row.form]
        options = dict(rope_scale=1.0, delta_scale=1.0, decay=row.decay, rotation=row.rotation)
        options |= dict(causal=row.causal) if row.form == 'vit' else {}
        self.row, dim = row, ARCH['embed_dims']
        self.backbone = kind(ARCH, 'raster', drop_path_rate=0.5 if row.drop_path else 0.0, **options)
        self.positions = nn.Parameter(0.02 * torch.randn(1, GRID**2 + 1, dim))
        self.heads = nn.ModuleList(nn.Linear(dim, KINDS + 1) for _ in range(2))

    def set_progress(self, progress: float) -> None:
        """Drop path as it is to be after a share of the training."""
        if self.row.drop_path:
            for index, block in enumerate(self.backbone.blocks):
                block.drop_path.drop_prob = (0.1 + 0.4 * progress) * index / (ARCH['depth'] - 1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The answers of the class token and of the mean of the others, and the tokens that enter each layer."""
        x = self.backbone.patch_embed(images)
        x = torch.cat((x, x.new_zeros(len(x), 1, x.shape[-1])), 1) + self.positions
        layers = []
        for block in self.backbone.blocks:
            layers.append(x)
            x = block(x)
        layers.append(x)
        x = self.backbone.norm(x)
        return [self.heads[0](x[:, -1]), self.heads[1](x[:, :-1].mean(1))], layers

    def loss(self, answers: Sequence[Tensor], scenes: Scenes) -> Tensor:
        """Cross entropy of the kinds and distance from the number of things."""
        losses = [
            F.binary_cross_entropy_with_logits(answer[:, :KINDS], scenes.present)
            + 0.5 * F.smooth_l1_loss(answer[:, KINDS], scenes.count)
            for answer in answers
        ]
        return losses[0] + 0.5 * losses[1] if self.row.auxiliary else losses[0]


def train(row: Row, seed: int, steps: int, batch: int, lr: float) -> Probe:
    """A trained network."""
    torch.manual_seed(seed)
    probe, generator = Probe(row), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(probe.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        probe.set_progress(step / max(steps - 1, 1))
        scenes = draw(batch, generator)
        loss = probe.loss(probe(scenes.images)[0], scenes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return probe.eval()


# Figures


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Share of the pairs in which the positive has the higher score."""
    return (positive[:, None] > negative).double().mean().item()


@torch.no_grad()
def accuracy(probe: Probe, scenes: Scenes) -> dict[str, float]:
    """How well the class token knows kinds and number, and the kinds by where their things are."""
    answers = torch.cat([probe(images)[0][0] for images in scenes.images.split(64)])
    kinds, figures = answers[:, :KINDS], {}
    is_right = (kinds > 0) == scenes.present.bool()
    figures['accuracy of kinds'] = is_right.double().mean().item()
    figures['error of number'] = (answers[:, KINDS] - scenes.count).abs().mean().item()
    for index, name in enumerate(THIRDS):
        alone = (scenes.where[..., index] > 0) & (scenes.where[..., index] == scenes.where.sum(-1))
        pairs = [(kinds[alone[:, i], i], kinds[scenes.present[:, i] == 0, i]) for i in range(KINDS)]
        figures[f'AUC, {name} third'] = statistics.mean(area_under_curve(*pair) for pair in pairs)
    return figures


def before_projection(attn: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a mixer makes of tokens before its last projection, in which the heads lie side by side."""

    def mix(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = attn.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            attn(x)
        finally:
            handle.remove()
        return seen[0]

    return mix


def over_focus(probe: Probe, scenes: Scenes) -> dict[str, float]:
    """The measures at some layers, counted from 0, means over images; those of fields over the tokens of the image.

    What the class token has of itself, through the residual stream, is no matter of focus.
    """
    answers, layers = probe(scenes.images)
    fields = token_gradients(layers[-1][:, -1].norm(dim=-1), layers[:-1])
    gradients = token_gradients(probe.loss(answers, scenes), layers[:-1])
    queries = list(range(12, GRID**2 + 1, 23))  # 9 of them; the last is the class token
    base = mean_received(queries, GRID**2 + 1, probe.row.causal).float()
    figures = {}
    for index in LAYERS:
        for name, weights in (('field', fields[index]), ('gradient', gradients[index])):
            figures[f'{name} share, layer {index}'] = effective_share(weights[:, :-1]).mean().item()
            figures[f'{name} top 5 %, layer {index}'] = top_mass(weights[:, :-1]).mean().item()
        block = probe.backbone.blocks[index]
        x = block.norm1(layers[index]).detach()
        attention = attention_map(block.attn, x, queries)[:, 0]
        figures[f'column share, layer {index}'] = effective_share(received(attention), base).mean().item()
        heads = attention_map(before_projection(block.attn), x, queries, groups=ARCH['num_heads'])
        figures[f'diversity, layer {index}'] = diversity(heads).mean().item()
    return figures


def print_table(results: dict[str, dict[str, float]], rows: Sequence[str], seeds: Sequence[int]) -> None:
    """A line for each figure and a column for each row, the means over seeds with the seeds' own behind them."""
    print(f'\n| figure | {" | ".join(rows)} |\n|---|{"---|" * len(rows)}')
    for figure in results[f'{rows[0]}, seed {seeds[0]}']:
        cells = []
        for row in rows:
            values = [results[f'{row}, seed {seed}'][figure] for seed in seeds]
            cells.append(f'{statistics.mean(values):.3f} ({", ".join(f"{value:.3f}" for value in values)})')
        print(f'| {figure} | {" | ".join(cells)} |')


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', choices=ROWS, metavar='ROW', default=list(ROWS), help='default: all')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--steps', type=int, default=250, help='of a training; default: %(default)s')
    parser.add_argument('--batch', type=int, default=16, help='scenes of a step; default: %(default)s')
    parser.add_argument('--lr', type=float, default=2e-3, help='highest learning rate; default: %(default)s')
    parser.add_argument('--results', type=Path, help='default: docs/studies/over_focus.json')
    args = parser.parse_args(argv)

    path = args.results or ROOT / 'docs/studies/over_focus.json'
    settings = dict(steps=args.steps, batch=args.batch, lr=args.lr)
    kept = json.loads(path.read_text()) if path.exists() else dict(settings=settings, results={})
    if kept['settings'] != settings:
        raise UserError(f'{path} holds results of {kept["settings"]} and not of {settings}; give another --results')
    results = kept['results']
    test = draw(TEST_SCENES, torch.Generator().manual_seed(TEST_SEED))
    measured = draw(MEASURED_SCENES, torch.Generator().manual_seed(TEST_SEED + 1))
    for seed in args.seeds:
        for row in args.rows:
            name = f'{row}, seed {seed}'
            if name in results:
                continue
            start = time.perf_counter()
            probe = train(ROWS[row], seed, **settings)
            minutes = (time.perf_counter() - start) / 60
            results[name] = {**accuracy(probe, test), **over_focus(probe, measured), 'minutes': round(minutes, 2)}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + '\n')
            print(f'{name}: kinds {results[name]["accuracy of kinds"]:.3f}, {minutes:.1f} minutes', flush=True)
    print_table(results, args.rows, args.seeds)


if __name__ == '__main__':
    main()
