"""Train, test and show FCViT on generated scenes: Mask R-CNN for detection, Semantic FPN for segmentation.

Each step is a command of this repository and is printed before it runs. What is finished is kept: a second run goes on
where the first one stopped.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, of which `tools` is a package

from tools.driver import ROOT, Test, Training, run_script

BATCH_SIZE = 8
# On a CPU two processes of one thread each are nearly twice as fast as one of two threads: the maps are small.
PROCESSES = 1 if torch.cuda.is_available() or os.cpu_count() == 1 else 2
# glibc hands large blocks back to the system when they are freed; every step would fetch the same pages anew.
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': '1000000000', 'MALLOC_TRIM_THRESHOLD_': '1000000000'}
# Name in the table, config, and the metrics of the test with their names in the table. The segmentor learns from every
# pixel, so backbone and pyramid of the detector start from its weights.
TASKS = [
    ('Semantic FPN, FCViT', 'configs/mini/fcvit-mini_fpn_ade20k.py', {'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'}),
    (
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


def plan(work_dir: Path, seed: int) -> list[Test]:
    """The tests of all tasks, each with its training before it, which starts from the training of the task before.

    Args:
        work_dir: Folder that gets one for each task.
        seed: Seed of the trainings.
    """
    options = [f'randomness.seed={seed}', f'train_dataloader.batch_size={BATCH_SIZE // PROCESSES}']
    tests: list[Test] = []
    for name, config, metrics in TASKS:
        folder = work_dir / Path(config).stem
        before = tests[-1].start if tests else None
        training = Training(name, config, options, folder, start=before, processes=PROCESSES)
        tests.append(Test(name, config, options, folder / 'test', metrics, training, pictures=folder / 'pictures'))
    return tests


def draw_sheet(folders: list[Path], path: Path, columns: int = 3, rows: int = 2) -> None:
    """Lay pictures of truth beside prediction, three in a row, on one sheet for each task.

    Args:
        folders: Folders of the tasks' pictures.
        path: Where the sheet goes.
        columns: Pictures in a row.
        rows: Rows for each task.
    """
    lines = []
    for folder in folders:
        files = sorted(folder.rglob('*.png')) + sorted(folder.rglob('*.jpg'))
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
    tests = plan(work_dir, args.seed)
    try:
        run_script('tools/data/make_mini.py', 'data/mini')
        for test in tests:
            test.start.run(**KEEP_MEMORY)
            test.run(**KEEP_MEMORY)
    except KeyboardInterrupt:
        sys.exit('\nstopped; the same command goes on from the last checkpoint')
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    sheet, folders = work_dir / 'predictions.jpg', [test.pictures for test in tests]
    draw_sheet(folders, sheet)

    print(f'\nOn the validation scenes (seed {args.seed}):')
    for test in tests:
        for label, share in test.shares:
            print(f'  {test.name:<22}{label:<16}{share:.3f}')
    print('\nPictures (truth on the left, prediction on the right):')
    for path in [sheet, *folders]:
        print(f'  {path}')
    print(f'\n{(time.monotonic() - start) / 60:.1f} minutes')


if __name__ == '__main__':
    main()
