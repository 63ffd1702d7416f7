"""Train small De-focus networks with and without the remedies, and measure over-focus in them.

The task needs the whole image at one token: which of eight kinds of things are in it, and how many things, read from
a class token at the end of 196 raster tokens. A kind that is there has two to four things, all in one third of the
sequence, whichever, and their hues spread into those of the neighbouring kinds, so that each thing counts. Every
network has 12 layers of 64 channels and learned absolute positions, and is one of our backbones from the patch
embedding to the last norm; scenes are drawn anew for each step, so that there is nothing to learn by heart. What is
finished is kept in the file of the results: a second run goes on where the first one stopped, and other rows or seeds
may be run beside it.

Example:
    python tools/analysis/over_focus_study.py --rows 'vit, not causal' vit retnet mamba --seeds 0 1 2 --jobs 2
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import DefocusMamba, DefocusRetNet, DefocusViT
from mmvisattn.visualization.over_focus import (
    attention_map,
    before,
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

from tools.analysis.intervals import half_width
from tools.driver import ROOT

GRID, PATCH, KINDS = 14, 16, 8
HERD = (2, 5)  # fewest things of a kind that is there, and more than the most
BLUR = 0.8  # how far the hue of a thing is off that of its kind at most, in distances between kinds
ARCH = dict(embed_dims=64, depth=12, num_heads=2, mlp_ratio=2)
MAMBA_ARCH = dict(embed_dims=64, depth=12, d_inner=128, d_state=16, dt_rank=4, group_norm_size=64)
LAYERS = (3, 6, 9, 11)
THIRDS = ('first', 'middle', 'last')
TEST_SEED, TEST_SCENES, MEASURED_SCENES = 10_000, 1024, 32
# Steps and highest learning rate of a form, or of a row of its own, by rows without remedies on seed 100.
CHOSEN = {'retnet': (1600, 2e-3), 'vit': (250, 2e-3), 'mamba': (1000, 2e-3), 'vit, not causal': (250, 2e-3)}


@dataclass(frozen=True)
class Row:
    """What sets a row apart.

    Args:
        form (str): ``'retnet'``, ``'vit'`` or ``'mamba'``.
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


ROWS = {**rows_of('retnet'), **rows_of('vit'), **rows_of('mamba'), 'vit, not causal': Row('vit', causal=False)}


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


def generator_of(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


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

    hue = kinds + BLUR * (2 * torch.rand(kinds.shape, generator=generator) - 1)
    hue = hue * (2 * torch.pi / KINDS)
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
    count = where.sum((1, 2)) / (KINDS * (sum(HERD) - 1) / 4)
    return Scenes(images, (where.sum(-1) > 0).float(), count, where)


# Network and training


def hold_filter(mixer: nn.Module, decay: bool, rotation: bool) -> None:
    """Have a mixer of Mamba, which cannot be built without its filter, forget nothing or turn nothing."""
    with torch.no_grad():
        if not decay:
            mixer.A_log.requires_grad_(False).fill_(-30)  # the state loses 1e-13 of itself at a step of 1
        if not rotation:
            mixer.freq.requires_grad_(False).zero_()


class Probe(nn.Module):
    """A backbone of ours with learned positions and a class token at the end, and heads on that.

    Args:
        row (Row): What it has.
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row, dim = row, ARCH['embed_dims']
        options = dict(
            token_order='raster', rope_scale=1.0, delta_scale=1.0, drop_path_rate=0.5 if row.drop_path else 0.0
        )
        filters = dict(decay=row.decay, rotation=row.rotation)
        if row.form == 'mamba':
            self.backbone = DefocusMamba(MAMBA_ARCH, **options)
            for block in self.backbone.blocks:
                hold_filter(block.mixer, **filters)
        elif row.form == 'retnet':
            self.backbone = DefocusRetNet(ARCH, **options, **filters)
        else:
            self.backbone = DefocusViT(ARCH, causal=row.causal, **options, **filters)
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
    probe, generator = Probe(row), generator_of(seed)
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
def accuracy(probe: Probe, seed: int = TEST_SEED) -> dict[str, float]:
    """How well the class token knows kinds and number in scenes of a seed, and the kinds by where their things are."""
    generator, parts = generator_of(seed), []
    for start in range(0, TEST_SCENES, 64):
        scenes = draw(min(64, TEST_SCENES - start), generator)
        parts.append((probe(scenes.images)[0][0], scenes.present, scenes.count, scenes.where))
    answers, present, count, where = (torch.cat(part) for part in zip(*parts))
    kinds, there, figures = answers[:, :KINDS], present.bool(), {}
    figures['accuracy of kinds'] = ((kinds > 0) == there).double().mean().item()
    figures['error of number'] = (answers[:, KINDS] - count).abs().mean().item()
    figures['AUC'] = statistics.mean(
        area_under_curve(kinds[there[:, i], i], kinds[~there[:, i], i]) for i in range(KINDS)
    )
    for index, name in enumerate(THIRDS):
        alone = (where[..., index] > 0) & (where[..., index] == where.sum(-1))
        pairs = [(kinds[alone[:, i], i], kinds[~there[:, i], i]) for i in range(KINDS)]
        figures[f'AUC, {name} third'] = statistics.mean(area_under_curve(*pair) for pair in pairs)
    figures['AUC, last − first third'] = figures['AUC, last third'] - figures['AUC, first third']
    return figures


def parts_of(block: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Norm, mixer and the last projection of the mixer in a block of ours."""
    if hasattr(block, 'mixer'):
        return block.norm, block.mixer, block.mixer.out_proj
    return block.norm1, block.attn, block.attn.proj


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
        norm, mixer, projection = parts_of(probe.backbone.blocks[index])
        x = norm(layers[index]).detach()
        attention = attention_map(mixer, x, queries)[:, 0]
        figures[f'column share, layer {index}'] = effective_share(received(attention), base).mean().item()
        heads = attention_map(before(projection, mixer), x, queries, groups=ARCH['num_heads'])
        figures[f'diversity, layer {index}'] = diversity(heads).mean().item()
    return figures


# Results


@dataclass(frozen=True)
class Run:
    """A training of a row, and what it is told by in the file of the results.

    Args:
        row (str): Its name.
        seed (int): Seed of weights, scenes and drop path.
        steps (int): Of the training.
        batch (int): Scenes of a step.
        lr (float): Highest learning rate.
    """

    row: str
    seed: int
    steps: int
    batch: int
    lr: float

    @property
    def name(self) -> str:
        """Its key among the results."""
        return f'{self.row}, seed {self.seed}'

    @property
    def settings(self) -> dict[str, object]:
        """What figures must have been measured with to be its own."""
        return dict(steps=self.steps, batch=self.batch, lr=self.lr, herd=list(HERD), blur=BLUR)

    def measure(self) -> dict:
        """Train, and measure."""
        torch.set_num_threads(1)
        start = time.process_time()
        probe = train(ROWS[self.row], self.seed, self.steps, self.batch, self.lr)
        minutes = round((time.process_time() - start) / 60, 2)
        figures = {**accuracy(probe), **over_focus(probe, draw(MEASURED_SCENES, generator_of(TEST_SEED + 1)))}
        return dict(settings=self.settings, minutes=minutes, figures=figures)


def load(path: Path) -> dict[str, dict]:
    """What is in the file of the results."""
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, name: str, result: dict) -> None:
    """Add a result to the file, which other commands may have added to in the meantime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f'{path.name}.{os.getpid()}')
    written.write_text(json.dumps({**load(path), name: result}, indent=1, ensure_ascii=False) + '\n')
    written.replace(path)  # in one step: nobody reads half of a file


def is_there(run: Run, path: Path) -> bool:
    """Whether the figures of a run are in the file.

    Raises:
        UserError: If they are, and were measured with other settings.
    """
    result = load(path).get(run.name)
    if result is not None and result['settings'] != run.settings:
        raise UserError(
            f'{path} has {run.name!r} with {result["settings"]} and not with {run.settings}; give another --results'
        )
    return result is not None


def print_tables(path: Path, rows: Sequence[str], seeds: Sequence[int], figures: Sequence[str]) -> None:
    """Means over seeds with the seeds' own behind them, then differences to the first row, paired by seed."""
    results = load(path)
    of = {row: [results[f'{row}, seed {seed}']['figures'] for seed in seeds] for row in rows}
    names = [name for name in of[rows[0]][0] if not figures or name.startswith(tuple(figures))]
    print(f'\n| figure | {" | ".join(rows)} |\n|---|{"---|" * len(rows)}')
    for name in names:
        cells = [[result[name] for result in of[row]] for row in rows]
        shown = [f'{statistics.mean(own):.3f} ({", ".join(f"{value:.3f}" for value in own)})' for own in cells]
        print(f'| {name} | {" | ".join(shown)} |')
    if len(rows) > 1 and len(seeds) > 1:
        print(f'\n| beyond {rows[0]} | {" | ".join(rows[1:])} |\n|---|{"---|" * (len(rows) - 1)}')
        for name in names:
            cells = [[there[name] - here[name] for there, here in zip(of[row], of[rows[0]])] for row in rows[1:]]
            print(f'| {name} | {" | ".join(map(interval, cells))} |')


def interval(differences: Sequence[float]) -> str:
    """Mean of paired differences, with its 95 % interval."""
    mean, half = statistics.mean(differences), half_width(differences)
    return f'{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})'


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', choices=ROWS, metavar='ROW', default=list(ROWS), help='default: all')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--steps', type=int, help='of a training; default: what was chosen for the form')
    parser.add_argument('--batch', type=int, default=16, help='scenes of a step; default: %(default)s')
    parser.add_argument('--lr', type=float, help='highest learning rate; default: what was chosen for the form')
    parser.add_argument(
        '--figures', nargs='+', default=[], metavar='TEXT', help='only those that begin so in the tables'
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='trainings at a time, one thread each; default: %(default)s'
    )
    parser.add_argument('--results', type=Path, help='default: docs/studies/over_focus.json')
    args = parser.parse_args(argv)

    path = args.results or ROOT / 'docs/studies/over_focus.json'
    runs = []
    for seed in args.seeds:
        for row in args.rows:
            steps, lr = CHOSEN.get(row, CHOSEN[ROWS[row].form])
            runs.append(Run(row, seed, args.steps or steps, args.batch, args.lr or lr))
    missing = [run for run in runs if not is_there(run, path)]
    # Processes of their own even for one at a time: nothing is carried over from a training to the next.
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('fork')) as pool:
        futures = {pool.submit(run.measure): run for run in missing}
        for future in as_completed(futures):
            name, result = futures[future].name, future.result()
            keep(path, name, result)
            print(f'{name}: AUC {result["figures"]["AUC"]:.3f}, {result["minutes"]:.1f} minutes', flush=True)
    print_tables(path, args.rows, args.seeds, args.figures)


if __name__ == '__main__':
    main()
