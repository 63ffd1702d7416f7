"""Draw what the network is fed: images after augmentation, with their boxes, masks or labels."""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from mmvisattn import cli
from mmvisattn.errors import UserError

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--split', choices=['train', 'val', 'test'], default='train', help='whose pipeline; default: %(default)s'
    )
    parser.add_argument('--number', type=int, default=16, help='pictures to draw; default: %(default)s')
    parser.add_argument('--out-dir', default='work_dirs/browse', help='where they go; default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the augmentation; default: %(default)s')
    cli.add_data_arguments(parser)
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def image_of(item: dict) -> np.ndarray:
    """The image of an item of a dataset, (H, W, 3), 8 bits, RGB."""
    inputs = item['inputs']
    inputs = inputs['img'] if isinstance(inputs, dict) else inputs
    return np.ascontiguousarray(inputs.permute(1, 2, 0).numpy().astype(np.uint8)[..., ::-1])


def drawable(sample: Any) -> Any:
    """A data sample with boxes and labels of the kind that the toolboxes' visualizers draw."""
    if 'gt_instances' in sample:
        instances = sample.gt_instances
        boxes = instances.bboxes
        instances.bboxes = getattr(boxes, 'tensor', boxes)
    if 'gt_sem_seg' in sample:
        sample = sample.numpy()
    return sample


def draw(cfg: Config, split: str, number: int, out_dir: Path) -> list[Path]:
    """Draw images of a split as the pipeline leaves them.

    Args:
        cfg (Config): The config.
        split (str): ``train``, ``val`` or ``test``.
        number (int): How many, spread over the split.
        out_dir (Path): Where they go.

    Returns:
        list[Path]: The pictures.

    Raises:
        UserError: If the config has no such split.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise UserError(f'the config has no `{split}_dataloader`')
    dataset = DATASETS.build(loader.dataset)
    visualizer = VISUALIZERS.build({key: value for key, value in cfg.visualizer.items() if key != 'vis_backends'})
    visualizer.dataset_meta = dataset.metainfo
    paths = []
    out_dir.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(dataset), max(len(dataset) // number, 1)):
        if len(paths) == number:
            break
        item = dataset[i]
        sample = drawable(item['data_samples'])
        path = out_dir / f'{i:05}-{Path(sample.img_path).stem}.png'
        visualizer.add_datasample(path.stem, image_of(item), sample, draw_pred=False)
        cv2.imwrite(str(path), cv2.cvtColor(visualizer.get_image(), cv2.COLOR_RGB2BGR))
        paths.append(path)
    return paths


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print the paths."""
    args = parse_args(argv)
    if args.number < 1:
        raise UserError(f'--number {args.number}: give at least 1')
    cfg = cli.load_config(args.config, args.cfg_options)
    cfg.work_dir = args.out_dir
    cli.use_data(cfg, args)
    cli.check_data(cfg, f'{args.split}_dataloader')
    init_default_scope(cfg.default_scope)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    for path in draw(cfg, args.split, args.number, Path(args.out_dir)):
        print(path)


if __name__ == '__main__':
    main()
