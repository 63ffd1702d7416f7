"""Draw what a detector (mmdet) or a segmentor (mmseg) sees on pictures, as its toolbox's visualizer draws it."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.engine import report_checkpoint
from mmvisattn.errors import UserError
from mmvisattn.registry import type_name

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from mmengine.visualization import Visualizer
from torch import nn

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture, or folder of pictures')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint',
        help='checkpoint file; the names of the classes come from it, or from the config where it has none',
    )
    parser.add_argument(
        '--out-dir',
        default='work_dirs/predictions',
        help='where the drawn pictures go, under the names of the given ones; default: %(default)s',
    )
    parser.add_argument('--device', help='such as cpu or cuda:1; default: the GPU where there is one')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='draw detections of at least this score, 0 to 1; default: %(default)s',
    )
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def find_images(paths: Sequence[str], out_dir: str) -> dict[Path, Path]:
    """The pictures among files and folders, and where each is to be written.

    Raises:
        UserError: If one is missing or no picture, a folder has none, or two have the same name.
    """
    images = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f'folder {str(path)!r} has no pictures ({", ".join(IMAGE_SUFFIXES)})')
            images += found
        else:
            cli.check_file(str(path), 'image')
            images.append(path)
    targets: dict[Path, Path] = {}
    for image in images:
        # A broken one in a folder is told when its turn comes.
        if image.suffix.lower() not in IMAGE_SUFFIXES and not cv2.haveImageReader(str(image)):
            raise UserError(f'{str(image)!r} is no picture that OpenCV reads; the order is IMAGE... CONFIG CHECKPOINT')
        target = Path(out_dir, image.name)
        if target in targets.values() or target.exists() and target.samefile(image):
            raise UserError(f'drawing {str(image)!r} would overwrite {str(target)!r}; give another --out-dir')
        targets[image] = target
    return targets


def innermost_dataset(cfg: Config) -> ConfigDict:
    """The dataset of the test, without wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.dataset if 'dataset' in dataset else dataset.datasets[0]
    return dataset


def build_model(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """The model with its weights, and the names and colours of its classes in ``dataset_meta``.

    Raises:
        UserError: If the checkpoint is of another model, or there are fewer names than classes.
    """
    model = MODELS.build(cfg.model)
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    report_checkpoint(model, content)
    load_state_dict(model, content['state_dict'])

    meta = content.get('meta') or {}
    # The upper case is that of the toolboxes' earlier versions.
    own = meta.get('dataset_meta') or {key.lower(): meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    dataset = DATASETS.build(dict(innermost_dataset(cfg), lazy_init=True))
    model.dataset_meta = {**dataset.metainfo, **{key.lower(): value for key, value in own.items() if value is not None}}
    model.dataset_meta.setdefault('palette', 'random')
    check_classes(model, 'the checkpoint' if 'classes' in own else '`test_dataloader.dataset` of the config')
    return model.to(device).eval()


def check_classes(model: nn.Module, source: str) -> None:
    """Refuse names that are fewer than the classes that the model tells apart; some would never appear.

    Raises:
        UserError: If they are.
    """
    names = model.dataset_meta.get('classes') or ()
    counts = [getattr(module, 'num_classes', 0) for name, module in model.named_modules() if name.endswith('_head')]
    most = max((count for count in counts if isinstance(count, int)), default=0)
    if len(names) < most:
        raise UserError(
            f'the model tells {most} classes apart and {source} names {len(names)}; set '
            '`test_dataloader.dataset.metainfo.classes` to the names of all'
        )


def build_visualizer(cfg: Config, model: nn.Module) -> Visualizer:
    """The config's visualizer, which writes nothing itself."""
    visualizer = VISUALIZERS.build({key: value for key, value in cfg.visualizer.items() if key != 'vis_backends'})
    visualizer.dataset_meta = model.dataset_meta
    return visualizer


def read(pipeline: Compose, image: Path) -> np.ndarray:
    """A picture as the pipeline's first step reads it, (H, W, 3), 8 bits, BGR.

    Raises:
        UserError: If that step cannot read it, or it has no 8 bits a channel.
    """
    try:
        picture = pipeline.transforms[0](dict(img_path=str(image)))['img']
    except Exception as error:  # readers say it in many ways
        raise UserError('it cannot be read: damaged, or no picture of a kind that the pipeline reads') from error
    if picture.dtype != np.uint8:
        raise UserError(f'its values are of type {picture.dtype}, and pictures have 8 bits a channel here')
    return picture


@torch.no_grad()
def draw(model: nn.Module, pipeline: Compose, visualizer: Visualizer, image: Path, options: dict) -> np.ndarray:
    """The prediction of one picture, drawn over it.

    Args:
        model (nn.Module): Detector or segmentor.
        pipeline (Compose): The test pipeline without annotations; its first step loads the picture.
        visualizer (Visualizer): What draws.
        image (Path): The picture's file.
        options (dict): Further options of the visualizer's ``add_datasample``.

    Returns:
        np.ndarray: (H, W, 3), 8 bits, BGR.

    Raises:
        UserError: If the picture cannot be read, or is too small for the network.
    """
    picture = read(pipeline, image)
    (sample,) = model.test_step(pseudo_collate([pipeline(dict(img_path=str(image), img_id=0))]))
    if 'pred_sem_seg' in sample:
        # mmseg's visualizer indexes arrays by it, and numpy takes a tensor of one element for a number.
        sample.pred_sem_seg = sample.pred_sem_seg.numpy()
    visualizer.add_datasample(image.name, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), sample, draw_gt=False, **options)
    return cv2.cvtColor(visualizer.get_image(), cv2.COLOR_RGB2BGR)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Predict, draw, and print the path of each drawn picture; exit status 1 where one could not be drawn."""
    args = parse_args(argv)
    targets = find_images(args.images, args.out_dir)
    cfg = cli.load_config(args.config, args.cfg_options)
    cli.check_file(args.checkpoint, 'checkpoint')
    device = args.device or get_device()
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise UserError(f'--device {device}: torch sees no GPU; use --device cpu')
    init_default_scope(cfg.default_scope)
    model = build_model(cfg, args.checkpoint, device)
    steps = innermost_dataset(cfg).pipeline
    pipeline = Compose([step for step in steps if not type_name(step['type']).endswith('Annotations')])
    visualizer = build_visualizer(cfg, model)
    options = dict(pred_score_thr=args.score_thr) if cfg.default_scope == 'mmdet' else {}
    broken = 0
    for image, target in targets.items():
        try:
            drawn = draw(model, pipeline, visualizer, image, options)
        # Whatever is wrong with a picture, the others are drawn.
        except Exception as error:
            broken += 1
            reason = str(error)
            if not isinstance(error, UserError):  # perhaps not the picture's fault
                traceback.print_exc()
                reason = f'{type(error).__name__}, see above'
            print(f'error: {image} is not drawn: {reason}', file=sys.stderr)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), drawn)
        print(target)
    if broken:
        print(f'error: {broken} of {len(targets)} pictures could not be drawn', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
