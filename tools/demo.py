"""Train, test and show FCViT on generated scenes: Semantic FPN for segmentation, Mask R-CNN for detection.

Each step is a command of this repository; the commands and what they print go to a log. What is finished is kept: a
second run goes on where the first one stopped. At the end there is a page about each model, for a browser.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmvisattn import cli

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, of which `tools` is a package

from tools.driver import ROOT, Test, Training, run_script

BATCH_SIZE = 8
# On a CPU two processes of one thread each are nearly twice as fast as one of two threads: the maps are small.
PROCESSES = 1 if torch.cuda.is_available() or os.cpu_count() == 1 else 2
# glibc hands large blocks back to the system when they are freed; every step would fetch the same pages anew.
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': '1000000000', 'MALLOC_TRIM_THRESHOLD_': '1000000000'}
# Simpler scenes than the other configs have: one or two objects of four classes.
SCENES = 'data/demo --size 128 96 --classes 4 --objects 1 2 --shares 0 1 0 --empty 0 --crowd 0'.split()
# Seconds on two cores of an AMD EPYC, 2026-11-26; their proportion tells the time left.
SCENES_SECONDS, TRAIN_SECONDS, TEST_SECONDS, REPORT_SECONDS = 20, (45, 80), 12, 20


def plan(work_dir: Path, seed: int) -> list[Test]:
    """The tests of a segmentor and a detector, each with its training before it.

    Args:
        work_dir (Path): Folder that gets one for each of them.
        seed (int): Seed of the trainings.
    """
    options = [
        *(f'randomness.seed={seed}', f'train_dataloader.batch_size={BATCH_SIZE // PROCESSES}'),
        'default_hooks.logger.interval=10',  # which tells the time left
        'train_cfg.val_interval=1000000',  # never: the test comes after it
    ]

    def plan_test(name: str, config: str, metrics: dict[str, str], start: Training | None = None) -> Test:
        folder = work_dir / Path(config).stem
        training = Training(name, config, options, folder, start=start, processes=PROCESSES)
        return Test(name, config, options, folder / 'test', metrics, training, pictures=folder / 'pictures')

    segmentor = plan_test(
        'Semantic FPN, FCViT', 'configs/mini/fcvit-demo_fpn_ade20k.py', {'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'}
    )
    average_precisions = {
        'coco/bbox_mAP_50': 'box AP50',
        'coco/segm_mAP_50': 'mask AP50',
        'coco/bbox_mAP': 'box AP',
        'coco/segm_mAP': 'mask AP',
    }
    # The segmentor learns from every pixel, so backbone and pyramid of the detector start from its weights.
    detector = plan_test(
        'Mask R-CNN, FCViT', 'configs/mini/mask-rcnn_fcvit-demo_fpn_coco.py', average_precisions, segmentor.start
    )
    return [segmentor, detector]


class Progress:
    """One line with what is running, how much is done and the time left; the outputs of the steps go to a log.

    Args:
        seconds (float): What all the steps take together.
        log (Path): The log.
    """

    def __init__(self, seconds: float, log: Path) -> None:
        self.log = log
        self.done = 0.0
        # Where lines cannot be overwritten, as in a file, one in half a minute.
        self.bar = tqdm(
            total=seconds,
            bar_format='{desc:<28}{percentage:3.0f} % |{bar:24}| {elapsed} gone, {remaining} left',
            smoothing=0,
            miniters=0,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def run(self, name: str, seconds: float, step: Callable[..., None]) -> None:
        """Run a step.

        Args:
            name (str): What to call it.
            seconds (float): What it takes.
            step (Callable[..., None]): Called with keywords for :func:`run_script`.
        """
        start = time.monotonic()
        self.bar.set_description(name)

        def watch(text: str) -> None:
            left = re.findall(r'eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', text)  # as mmengine has it
            if left:
                days, hours, minutes, rest = (int(number or 0) for number in left[-1])
                gone = time.monotonic() - start
                share = gone / (gone + ((days * 24 + hours) * 60 + minutes) * 60 + rest)
                self.bar.n = max(self.bar.n, self.done + share * seconds)
            self.bar.update(0)

        step(log=self.log, watch=watch, **KEEP_MEMORY)
        self.done += seconds
        self.bar.n = self.done
        self.bar.update(0)


def draw_sheet(folders: list[Path], path: Path, columns: int = 3, rows: int = 2) -> None:
    """Lay pictures of truth beside prediction, three in a row, on one sheet.

    Args:
        folders (list[Path]): Folders of pictures.
        path (Path): Where the sheet goes.
        columns (int): Pictures in a row.
        rows (int): Rows for each folder.
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


def report_of(test: Test) -> Path:
    """Where the page about a model goes."""
    return test.start.folder / 'report.html'


def report_command(test: Test) -> list[str | Path]:
    """The script that writes the page about a model, and its arguments; all validation scenes are measured."""
    options = ['--measure', '100', '--num-images', '8', '--out', report_of(test)]
    return ['tools/analysis/report.py', test.config, '--checkpoint', test.start.checkpoint, *options]


def run_all(tests: list[Test], progress: Progress, sheet: Path) -> None:
    """Draw the scenes, train and test, lay out pictures as soon as there are some, and write a page about each model.

    Args:
        tests (list[Test]): The tests, with their trainings.
        progress (Progress): Tells how far it is.
        sheet (Path): Where the sheet of pictures goes.
    """
    make_scenes = partial(run_script, 'tools/data/make_mini.py', *SCENES)
    progress.run('drawing scenes', SCENES_SECONDS, make_scenes)
    for number, (test, seconds) in enumerate(zip(tests, TRAIN_SECONDS), 1):
        if not test.start.result_file.exists():
            progress.run(f'training {test.name}', seconds, test.start.run)
        if not test.result_file.exists():
            progress.run(f'testing {test.name}', TEST_SECONDS, test.run)
        draw_sheet([test.pictures for test in tests[:number]], sheet)
        progress.bar.write(f'{test.name}: pictures of truth and prediction in {sheet}', file=sys.stderr)
    for test in tests:
        if not report_of(test).exists():
            progress.run(f'report on {test.name}', REPORT_SECONDS, partial(run_script, *report_command(test)))


@cli.one_line_errors
def main() -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: work_dirs/demo')
    parser.add_argument('--seed', type=int, default=0, help='seed of both trainings; default: 0')
    args = parser.parse_args()

    start = time.monotonic()
    work_dir = (ROOT / args.work_dir).resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    log, sheet = work_dir / 'log.txt', work_dir / 'predictions.jpg'
    print(f'commands and their outputs: {log}', flush=True)
    tests = plan(work_dir, args.seed)
    to_train = sum(seconds for test, seconds in zip(tests, TRAIN_SECONDS) if not test.start.result_file.exists())
    to_test = TEST_SECONDS * sum(not test.result_file.exists() for test in tests)
    to_report = REPORT_SECONDS * sum(not report_of(test).exists() for test in tests)
    progress = Progress(SCENES_SECONDS + to_train + to_test + to_report, log)
    try:
        run_all(tests, progress, sheet)
    except KeyboardInterrupt:
        progress.bar.close()
        sys.exit('\nstopped; the same command goes on from the last checkpoint')
    except subprocess.CalledProcessError as error:
        progress.bar.close()
        lines = log.read_text(errors='replace').splitlines()[-20:] if log.exists() else []
        print(*lines, f'\nstatus {error.returncode}; all of it in {log}', sep='\n', file=sys.stderr)
        sys.exit(error.returncode)
    progress.bar.close()

    print(f'\nOn the validation scenes (seed {args.seed}):')
    for test in tests:
        for label, share in test.shares:
            print(f'  {test.name:<22}{label:<16}{share:.3f}')
    print('\nPictures (truth on the left, prediction on the right):')
    for path in [sheet, *(test.pictures for test in tests)]:
        print(f'  {path}')
    print('\nA page about each model, for a browser:')
    for test in tests:
        print(f'  {report_of(test)}')
    print(f'\n{(time.monotonic() - start) / 60:.1f} minutes')


if __name__ == '__main__':
    main()
