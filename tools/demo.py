"""Train, test and show FCViT on generated scenes: Mask R-CNN for detection, Semantic FPN for segmentation.

Each step is a command of this repository and is printed before it runs. What is finished is kept: a second run goes on
where the first one stopped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 8
# On a CPU two processes of one thread each are nearly twice as fast as one of two threads: the maps are small.
PROCESSES = 1 if torch.cuda.is_available() or os.cpu_count() == 1 else 2
# glibc hands large blocks back to the system when they are freed; every step would fetch the same pages anew.
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': '1000000000', 'MALLOC_TRIM_THRESHOLD_': '1000000000'}


@dataclass(frozen=True)
class Task:
    """One training with its test.

    Args:
        name: What it is called in the table.
        config: Config file.
        metrics: Keys of the test's results, and what they are called in the table.
    """

    name: str
    config: str
    metrics: dict[str, str]


TASKS = [
    Task(
        'Semantic FPN, FCViT',
        'configs/mini/fcvit-mini_fpn_ade20k.py',
        {'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'},
    ),
    Task(
        'Mask R-CNN, FCViT',
        'configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py',
        {
            'coco/bbox_mAP_50': 'box AP50',
            'coco/segm_mAP_50': 'mask AP50',
            'coco/bbox_mAP': 'box AP',
            'coco/segm_mAP': 'mask AP',
        },
    ),
]


def run(*command: str | Path) -> None:
    """Print and run a tool of this repository; stop with its status where it fails."""
    words = [str(word) for word in command]
    print(f'\n$ python {shlex.join(words)}', flush=True)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env={**os.environ, **KEEP_MEMORY})
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reaches it too; it has the word first
        sys.exit('\nstopped; the same command goes on from the last checkpoint')
    if status:
        sys.exit(status)


def last_checkpoint(work_dir: Path) -> Path | None:
    """The checkpoint that a training wrote last."""
    pointer = work_dir / 'last_checkpoint'
    return Path(pointer.read_text().strip()) if pointer.exists() else None


def finished(work_dir: Path) -> bool:
    """Whether a training in this folder ran to its end."""
    return (work_dir / 'finished').exists()


def results_of(work_dir: Path) -> dict[str, float] | None:
    """The metrics that the newest finished test in this folder wrote."""
    files = sorted(work_dir.glob('[0-9]*/[0-9]*.json'))
    return json.loads(files[-1].read_text()) if files else None


def trainer() -> list[str]:
    """The words of a command that trains, up to the config."""
    if PROCESSES == 1:
        return ['tools/train.py']
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={PROCESSES}']
    return [*launcher, 'tools/train.py', '--launcher', 'pytorch']


def train_and_test(task: Task, work_dir: Path, options: list[str]) -> dict[str, float]:
    """Train and test, or take what an earlier run left.

    Args:
        task: What to do.
        work_dir: Folder for logs and checkpoints; pictures go to its ``pictures``.
        options: Further ``--cfg-options``.

    Returns:
        The metrics of the test.
    """
    cfg_options = ['--cfg-options', *options, f'train_dataloader.batch_size={BATCH_SIZE // PROCESSES}']
    if not finished(work_dir):
        resume = ['--resume'] if last_checkpoint(work_dir) else []
        run(*trainer(), task.config, '--work-dir', work_dir, *resume, *cfg_options)
        (work_dir / 'finished').touch()
    test_dir = work_dir / 'test'
    if results_of(test_dir) is None:
        show = ['--show-dir', (work_dir / 'pictures').resolve()]
        run('tools/test.py', task.config, last_checkpoint(work_dir), '--work-dir', test_dir, *show, *cfg_options)
    return results_of(test_dir)


def draw_sheet(work_dirs: list[Path], path: Path, columns: int = 3, rows: int = 2) -> None:
    """Lay pictures of truth beside prediction, three in a row, on one sheet for each task.

    Args:
        work_dirs: Folders of the tasks.
        path: Where the sheet goes.
        columns: Pictures in a row.
        rows: Rows for each task.
    """
    lines = []
    for work_dir in work_dirs:
        files = sorted((work_dir / 'pictures').rglob('*.png')) + sorted((work_dir / 'pictures').rglob('*.jpg'))
        pictures = [cv2.imread(str(file)) for file in files[: columns * rows]]
        height, width = pictures[0].shape[:2]
        pictures = [cv2.resize(picture, (width, height)) for picture in pictures]
        lines += [np.hstack(pictures[i : i + columns]) for i in range(0, columns * rows, columns)]
    width = min(line.shape[1] for line in lines)
    lines = [cv2.resize(line, (width, line.shape[0] * width // line.shape[1])) for line in lines]
    cv2.imwrite(str(path), np.vstack(lines))


def main() -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: work_dirs/demo')
    parser.add_argument('--seed', type=int, default=0, help='seed of both trainings; default: 0')
    args = parser.parse_args()

    start = time.monotonic()
    work_dir = (ROOT / args.work_dir).resolve()
    run('tools/data/make_mini.py', 'data/mini')
    rows, work_dirs, options = [], [], [f'randomness.seed={args.seed}']
    for task in TASKS:
        work_dirs.append(work_dir / Path(task.config).stem)
        results = train_and_test(task, work_dirs[-1], options)
        rows += [(task.name, label, results[key]) for key, label in task.metrics.items()]
        # The segmentor learns from every pixel, so backbone and pyramid of the detector start from its weights.
        options = [*options, f'load_from={last_checkpoint(work_dirs[-1])}']
    sheet = work_dir / 'predictions.jpg'
    draw_sheet(work_dirs, sheet)

    print(f'\nOn the validation scenes (seed {args.seed}):')
    for name, label, value in rows:
        # mmseg writes per cent, mmdet shares of one.
        print(f'  {name:<22}{label:<16}{value / 100 if value > 1 else value:.3f}')
    print('\nPictures (truth on the left, prediction on the right):')
    for path in [sheet, *(folder / 'pictures' for folder in work_dirs)]:
        print(f'  {path}')
    print(f'\n{(time.monotonic() - start) / 60:.1f} minutes')


if __name__ == '__main__':
    main()
