"""What a search (``make_mini.py --decoys``) gives away, before anything is trained on it.

Two measures of contrast choose cells, and the share of the targets' boxes that these cover is told: if an edge or a
strange colour led to the targets, the search would show nothing about attention. And a small classifier is shown the
image around a place, shrunk as for a glance and as for FlexViT's scout: it should tell a thing from the ground, for
otherwise a glance could lead nowhere, and not tell the classes apart, for otherwise there were no need to look closely.
At last networks that see no more than that are taught by the boxes to choose cells: how many targets can be found so.

Example:
    python tools/data/make_mini.py data/mini_search --size 256 256 --classes 3 --objects 1 2 --empty 0.1 --decoys 6 10
    python tools/analysis/search_gates.py data/mini_search
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.layers.scout import Scout, sight

CELL, ZOOM = 32, 4  # pixels
PATCH = CELL // ZOOM  # a cell of the shrunk image
SIGHT = sight(PATCH, ZOOM)  # how much the image is shrunk for FlexViT's scout
STEPS = 1000  # of teaching, 16 scenes each
AROUND = 16  # pixels to each side of a place, and the one that it is in
Box = tuple[float, float, float, float]  # x, y, width, height


def read(root: Path, split: str) -> list[tuple[np.ndarray, list[Box], list[int], list[Box]]]:
    """Image (H, W, 3) in 0…255, boxes of targets, their classes, and boxes of decoys of each scene."""
    content = json.loads((root / f'coco/annotations/instances_{split}2017.json').read_text())
    numbers = {number: n for n, number in enumerate(sorted({a['category_id'] for a in content['annotations']}))}
    scenes = []
    for record in content['images']:
        own = [a for a in content['annotations'] if a['image_id'] == record['id']]
        image = cv2.imread(str(root / f'coco/{split}2017' / record['file_name']))
        classes = [numbers[a['category_id']] for a in own]
        scenes.append((image, [a['bbox'] for a in own], classes, record['decoys']))
    return scenes


def pixel_deviation(image: np.ndarray) -> np.ndarray:
    """Standard deviation of the pixels of each cell, (cell rows, cell columns)."""
    return _cells(image).std(2).mean(-1)


def colour_contrast(image: np.ndarray) -> np.ndarray:
    """Distance of a cell's most unusual colour, at the scale of a thing, from the mean colour of the image."""
    smooth = cv2.blur(image.astype(np.float32), (9, 9))
    return _cells(np.linalg.norm(smooth - image.mean((0, 1)), axis=-1, keepdims=True)).max(2)[..., 0]


def _cells(image: np.ndarray) -> np.ndarray:
    rows, columns = image.shape[0] // CELL, image.shape[1] // CELL
    split = image[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL, -1)
    return split.swapaxes(1, 2).reshape(rows, columns, CELL * CELL, -1)


def coverage(scores: np.ndarray, boxes: Sequence[Box], ratio: float) -> list[float]:
    """The share of each box that the best cells cover."""
    chosen = np.zeros(scores.size)
    chosen[np.argsort(-scores.ravel())[: round(ratio * scores.size)]] = 1
    pixels = np.kron(chosen.reshape(scores.shape), np.ones((CELL, CELL)))
    return [
        pixels[int(y) : int(np.ceil(y + height)), int(x) : int(np.ceil(x + width))].mean()
        for x, y, width, height in boxes
    ]


def shrink(image: np.ndarray, by: int) -> np.ndarray:
    """An image (H, W, 3) shrunk, in 0…1."""
    return cv2.resize(image, None, fx=1 / by, fy=1 / by, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def look(image: np.ndarray, boxes: Sequence[Box], by: int) -> list[np.ndarray]:
    """What the image, shrunk, shows around the middle of each box."""
    around = AROUND // by
    low = np.pad(shrink(image, by), ((around, around), (around, around), (0, 0)), mode='edge')
    at = [(int((y + height / 2) / by), int((x + width / 2) / by)) for x, y, width, height in boxes]
    return [low[y : y + 2 * around + 1, x : x + 2 * around + 1] for y, x in at]


def show(scenes: Sequence, by: int) -> list[list[np.ndarray]]:
    """What images, shrunk, show of the ground, of targets, of decoys, and of the targets of each class."""
    rng = np.random.default_rng(0)
    ground, targets, decoys = [], [], []
    classes: list[list[np.ndarray]] = [[] for _ in range(1 + max(n for s in scenes for n in s[2]))]
    for image, boxes, numbers, others in scenes:
        seen = look(image, boxes, by)
        targets += seen
        decoys += look(image, others, by)
        middles = np.array([(x + w / 2, y + h / 2) for x, y, w, h in [*boxes, *others]]).reshape(-1, 2)
        places = rng.uniform(8, (image.shape[1] - 8, image.shape[0] - 8), (8, 2))
        free = [p for p in places if (np.hypot(*(middles - p).T) > 16).all()]
        ground += look(image, [(x, y, 0, 0) for x, y in free], by)
        for n, patch in zip(numbers, seen):
            classes[n].append(patch)
    return [ground, targets, decoys, *classes]


def accuracy(train: Sequence[Sequence[np.ndarray]], val: Sequence[Sequence[np.ndarray]]) -> float:
    """Mean accuracy over the classes of a small network that was trained on examples of each."""
    torch.manual_seed(0)

    def gather(groups: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
        examples = torch.tensor(np.concatenate([np.stack(group) for group in groups])).permute(0, 3, 1, 2)
        return examples - 0.5, torch.cat([torch.full((len(group),), n) for n, group in enumerate(groups)])

    (x, y), (x_val, y_val) = gather(train), gather(val)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, len(train)),
    )  # fmt: skip
    network(x[:1])
    weight = 1 / torch.bincount(y)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(15):
        for index in torch.randperm(len(y)).split(64):
            loss = nn.functional.cross_entropy(network(x[index]), y[index], weight / weight.sum() * len(weight))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        right = network(x_val).argmax(1) == y_val
    return float(np.mean([right[y_val == n].float().mean() for n in range(len(val))]))


class Tokens(nn.Module):
    """A small plain ViT on the shrunk image, and a linear judgement of each token."""

    def __init__(self) -> None:
        super().__init__()
        arch = dict(embed_dims=96, depth=6, num_heads=3, mlp_ratio=2)
        self.vit = FlexViT(arch, PATCH, 64, num_glance_layers=6, out_indices=(1,))
        self.judge = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, H / 8, W / 8)."""
        x = F.interpolate(x, scale_factor=self.vit.zoom)  # which it shrinks again
        return self.judge(self.vit(x)[0].permute(0, 2, 3, 1)).squeeze(-1)


def share_found(network: nn.Module, train: Sequence, val: Sequence, by: int) -> float:
    """The share of the targets whose middle is in the best tenth of the cells, after a network was taught by boxes.

    Args:
        network (nn.Module): Judges the cells of images.
        train (Sequence): Scenes to teach it.
        val (Sequence): Scenes in which targets are to be found.
        by (int): How much images are shrunk for it.
    """
    torch.manual_seed(0)

    def gather(scenes: Sequence) -> tuple[Tensor, Tensor]:
        images = torch.tensor(np.stack([shrink(scene[0], by) for scene in scenes])).permute(0, 3, 1, 2) * 4 - 2
        cells = torch.zeros(len(scenes), *(n * by // CELL for n in images.shape[2:]))
        for of_image, (_, boxes, *_) in zip(cells, scenes):
            for x, y, width, height in boxes:
                of_image[int(y) // CELL : int(y + height) // CELL + 1, int(x) // CELL : int(x + width) // CELL + 1] = 1
        return images, cells

    (images, cells), (shown, _) = gather(train), gather(val)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        index = torch.randint(len(images), (16,))
        x, y = images[index], cells[index]
        if torch.rand(()) < 0.5:
            x, y = x.flip(3), y.flip(2)
        loss = F.binary_cross_entropy_with_logits(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        scores = network(shown)
    found = [
        scores[n, int(y + height / 2) // CELL, int(x + width / 2) // CELL] >= scores[n].flatten().topk(best).values[-1]
        for best in (round(scores[0].numel() / 10),)
        for n, scene in enumerate(val)
        for x, y, width, height in scene[1]
    ]
    return float(np.mean(found))


def measure(root: Path) -> list[tuple[str, float, float]]:
    """All gates of a set: what is measured, its value, and what chance would give."""
    train, val = read(root, 'train'), read(root, 'val')
    rows = [
        (
            f'{name} covers of a box at {ratio:.0%}',
            np.mean([c for s in val for c in coverage(of(s[0]), s[1], ratio)]),
            ratio,
        )
        for name, of in (('pixel deviation', pixel_deviation), ('colour contrast', colour_contrast))
        for ratio in (0.05, 0.1)
    ]
    for name, by in (('a glance', ZOOM), (f'an image {SIGHT} times as small', SIGHT)):
        shown = [show(scenes, by) for scenes in (train, val)]
        for what, groups in (
            ('things from the ground', [[of[0], of[1] + of[2]] for of in shown]),
            ('targets from decoys', [of[1:3] for of in shown]),
            ('the classes apart', [of[3:] for of in shown]),
        ):
            rows.append((f'{name} tells {what}', accuracy(*groups), 1 / len(groups[0])))
    torch.manual_seed(0)
    for name, network, by in (
        (f'a scout on the image {ZOOM} times as small', Scout(3, PATCH), ZOOM),
        (f"FlexViT's scout, on the image {SIGHT} times as small", Scout(3, CELL // SIGHT), SIGHT),
        ('the tokens of a ViT', Tokens(), ZOOM),
    ):
        rows.append(
            (f'{name}, taught by boxes, finds of the targets at 10%', share_found(network, train, val, by), 0.1)
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path, help='folder of the set')
    rows = measure(parser.parse_args(argv).root)
    print('| gate | measured | chance |\n|---|---|---|')
    for name, value, chance in rows:
        print(f'| {name} | {value:.3f} | {chance:.3f} |')


if __name__ == '__main__':
    main()
