"""What a segmentor takes each class for, from the labels that tools/test.py --out has written.

It prints the most frequent confusions and draws the matrix: of the pixels of each class, the share that is taken for
each. Void pixels do not count. (mmseg's own script reckons in 8 bits and shifts the labels of ADE20K twice; that for
detectors is mmdet's, see docs/tools.md.)

Example:
    python tools/test.py CONFIG CHECKPOINT --out labels
    python tools/analysis/confusion_matrix.py CONFIG labels --plot confusion.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError

import cv2
import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from tqdm import tqdm


def confusion_matrix(dataset: object, folder: Path) -> np.ndarray:
    """Count the pixels of each class (rows) by what they are taken for (columns).

    Args:
        dataset (object): The dataset of mmseg that was tested.
        folder (Path): One PNG of labels for each image; where the dataset takes label 0 for void, they begin at 1.

    Returns:
        np.ndarray: (classes, classes), int64.

    Raises:
        UserError: If an image has no labels there, or they are of another size or beyond the classes.
    """
    number = len(dataset.metainfo['classes'])
    counts = np.zeros((number, number), np.int64)
    for i in tqdm(range(len(dataset)), desc='images'):
        sample = dataset[i]['data_samples']
        path = folder / f'{Path(sample.img_path).stem}.png'
        if not path.is_file():
            raise UserError(f'{str(path)!r} is missing; write it with tools/test.py --out {folder}')
        truth = sample.gt_sem_seg.data.numpy().squeeze(0).astype(np.int64)
        taken = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int64) - int(dataset.reduce_zero_label)
        if taken.shape != truth.shape or not 0 <= taken.min() <= taken.max() < number:
            raise UserError(
                f'{str(path)!r} has {taken.shape[0]}×{taken.shape[1]} labels from {taken.min()} to {taken.max()}, the '
                f'truth {truth.shape[0]}×{truth.shape[1]} of {number} classes; give the labels of this config'
            )
        seen = truth != dataset.ignore_index
        counts += np.bincount(number * truth[seen] + taken[seen], minlength=number**2).reshape(number, number)
    return counts


def draw(shares: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw the matrix, with the per cent in each cell where there is room for them."""
    from matplotlib.figure import Figure

    side = max(0.45 * len(classes), 4)
    figure = Figure(figsize=(min(side + 1.5, 30), min(side, 28)), layout='constrained')
    axes = figure.subplots()
    axes.imshow(shares, cmap='viridis', vmin=0, vmax=1)
    axes.set(xlabel='taken for', ylabel='class', xticks=range(len(classes)), yticks=range(len(classes)))
    axes.set_xticklabels(classes, rotation=90)
    axes.set_yticklabels(classes)
    if len(classes) <= 40:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = 'black' if share > 0.6 else 'white'
                axes.text(column, row, f'{share:.0%}', ha='center', va='center', color=colour, fontsize=7)
    figure.savefig(path, dpi=110)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Count, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a segmentor')
    parser.add_argument('labels', type=Path, help='folder that tools/test.py --out has written')
    parser.add_argument('--top', type=int, default=10, metavar='N', help='confusions to print; default: 10')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw the matrix, as .png or .svg')
    cli.add_cfg_options(parser)
    args = parser.parse_args(argv)

    cfg = cli.load_config(args.config, args.cfg_options)
    if cfg.default_scope != 'mmseg':
        raise UserError(f'{args.config!r} is of a detector; mmdet has a tool for these, see docs/tools.md')
    if not args.labels.is_dir():
        raise UserError(f'{str(args.labels)!r} is no folder; write it with tools/test.py --out {args.labels}')
    cli.check_data(cfg, 'test_dataloader')
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    counts = confusion_matrix(dataset, args.labels)
    classes = dataset.metainfo['classes']
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.where(np.eye(len(classes), dtype=bool), -1, counts)
    print('| class | taken for | of its pixels | pixels |\n|---|---|---|---|')
    for index in np.argsort(-wrong, axis=None)[: args.top]:
        row, column = np.unravel_index(index, wrong.shape)
        if wrong[row, column] > 0:
            print(f'| {classes[row]} | {classes[column]} | {shares[row, column]:.1%} | {counts[row, column]} |')
    if args.plot:
        draw(shares, classes, args.plot)
        print(f'\n{args.plot}')


if __name__ == '__main__':
    main()
