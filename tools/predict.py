"""Draw what a detector (mmdet) or a segmentor (mmseg) sees on pictures, with the toolbox's own inferencer."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli  # first: with it the toolboxes run without a compiled mmcv

# isort: split
import cv2
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.infer import BaseInferencer
from torch import nn

from mmvisattn.engine import report_checkpoint
from mmvisattn.errors import UserError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture, or folder of pictures')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file; the names of the classes come from it')
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
        if not cv2.haveImageReader(str(image)):
            raise UserError(f'{str(image)!r} is no picture that OpenCV reads; the order is IMAGE... CONFIG CHECKPOINT')
        target = Path(out_dir, image.name)
        if target in targets.values() or target.exists() and target.samefile(image):
            raise UserError(f'drawing {str(image)!r} would overwrite {str(target)!r}; give another --out-dir')
        targets[image] = target
    return targets


def build_inferencer(cfg: Config, checkpoint: str, device: str) -> BaseInferencer:
    """The inferencer of the config's toolbox, made to refuse a checkpoint of another model."""
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer as Inferencer
    else:
        from mmseg.apis import MMSegInferencer as Inferencer

    class LoudInferencer(Inferencer):
        def _load_weights_to_model(self, model: nn.Module, checkpoint: dict, cfg: Config) -> None:
            report_checkpoint(model, checkpoint)
            super()._load_weights_to_model(model, checkpoint, cfg)

    cfg.visualizer.pop('vis_backends', None)  # the pictures are written here
    inferencer = LoudInferencer(cfg, checkpoint, device=device)
    inferencer.show_progress = False
    return inferencer


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Predict, draw, and print the path of each drawn picture."""
    args = parse_args(argv)
    targets = find_images(args.images, args.out_dir)
    cfg = cli.load_config(args.config, args.cfg_options)
    cli.check_file(args.checkpoint, 'checkpoint')
    device = args.device or get_device()
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise UserError(f'--device {device}: torch sees no GPU; use --device cpu')
    inferencer = build_inferencer(cfg, args.checkpoint, device)
    options = dict(pred_score_thr=args.score_thr) if cfg.default_scope == 'mmdet' else {}
    for image, target in targets.items():
        drawn = inferencer(str(image), return_vis=True, **options)['visualization']
        drawn = drawn[0] if isinstance(drawn, list) else drawn
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        print(target)


if __name__ == '__main__':
    main()
