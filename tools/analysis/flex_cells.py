"""Draw which cells of the high resolution FlexAttention chooses.

A row of two panels for each picture: the picture as the network sees it, then the same with all but the chosen cells
dimmed. A model that tests crop by crop gets a row for each crop; one with several networks of the kind, a row for each
of them.

Example:
    python tools/analysis/flex_cells.py CONFIG CHECKPOINT street.jpg --out-dir cells
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmvisattn import cli
from mmvisattn.engine import report_checkpoint
from mmvisattn.errors import UserError
from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.layers.selection import Selection, TokenSelector
from mmvisattn.visualization import draw_layers, stack_rows

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a model with FlexViT or FlexAttentionNeck')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('pictures', nargs='*', metavar='IMAGE', help='picture; default: the first of the test set')
    parser.add_argument('--images', type=int, default=4, help='how many of the test set; default: %(default)s')
    parser.add_argument(
        '--out-dir',
        default='work_dirs/cells',
        help='where the drawings go, under the names of the pictures; default: %(default)s',
    )
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def first_images(cfg: Config, count: int) -> list[str]:
    """The first pictures of the test set."""
    cli.check_data(cfg, 'test_dataloader')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return [dataset.get_data_info(i)['img_path'] for i in range(min(count, len(dataset)))]


def find_targets(images: Sequence[str], out_dir: str) -> dict[str, Path]:
    """Where the drawing of each picture is to be written.

    Raises:
        UserError: If one is missing or no picture, or a drawing would overwrite a picture or another drawing.
    """
    targets: dict[str, Path] = {}
    for image in images:
        cli.check_file(image, 'image')
        if not cv2.haveImageReader(image):
            raise UserError(f'{image!r} is no picture that OpenCV reads; the order is CONFIG CHECKPOINT IMAGE...')
        target = Path(out_dir, Path(image).name)
        if target in targets.values() or target.exists() and target.samefile(image):
            raise UserError(f'drawing {image!r} would overwrite {str(target)!r}; give another --out-dir')
        targets[image] = target
    return targets


@dataclass
class View:
    """What one network chose in one forward.

    Args:
        network (str): Name of the network's class.
        image (Tensor): The normalised input of the model, (3, H, W).
        layer (int): Number of the layer, from 1, after which it chose.
        chosen (np.ndarray): Boolean, (rows, columns) of cells.
        cell (tuple[float, float]): Height and width of a cell in pixels.
    """

    network: str
    image: Tensor
    layer: int
    chosen: np.ndarray
    cell: tuple[float, float]


class Recorder:
    """Note the selections as they are made, for batches of one image.

    Args:
        model (nn.Module): The detector or segmentor.

    Raises:
        UserError: If it has no FlexAttention.
    """

    def __init__(self, model: nn.Module) -> None:
        networks = [m for m in model.modules() if isinstance(getattr(m, 'selector', None), TokenSelector)]
        if not networks:
            raise UserError('the model has no FlexAttention; give the config of a FlexViT or FlexAttentionNeck')
        self.views: list[View] = []
        model.backbone.register_forward_pre_hook(self._note_image)
        for network in networks:
            network.selector.register_forward_hook(self._note_selection)
            network.register_forward_hook(self._note_network)

    def _note_image(self, backbone: nn.Module, args: tuple) -> None:
        self.image = args[0][0]

    def _note_selection(self, selector: TokenSelector, args: tuple, selection: Selection) -> None:
        self.chosen = selection.mask(args[0].shape[1:])[0].cpu().numpy()

    def _note_network(self, network: nn.Module, args: tuple, outs: tuple[Tensor, ...]) -> None:
        layer = network.num_glance_layers if isinstance(network, FlexViT) else 1
        if isinstance(network, FlexViT):
            token = (network.patch_size,) * 2
        else:
            # The fine level spans the image; of sizes that do not divide it, to within a token.
            token = tuple(n / m for n, m in zip(self.image.shape[1:], outs[network.high_level].shape[2:]))
        cell = tuple(side * network.zoom * network.cell_size for side in token)
        self.views.append(View(type(network).__name__, self.image, layer, self.chosen, cell))


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint and report what it filled."""
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='current')
    report_checkpoint(model, checkpoint)
    load_state_dict(model, checkpoint['state_dict'], logger='current')


def to_picture(image: Tensor, preprocessor: nn.Module, bgr_to_rgb: bool) -> np.ndarray:
    """The normalised input of a model as a picture for OpenCV: (3, H, W) → (H, W, 3), BGR, uint8."""
    image = image * getattr(preprocessor, 'std', 1) + getattr(preprocessor, 'mean', 0)
    picture = image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(picture[..., ::-1] if bgr_to_rgb else picture)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Predict, draw, and print the path of each drawing."""
    args = parse_args(argv)
    cfg = cli.load_config(args.config, args.cfg_options)
    cli.check_file(args.checkpoint, 'checkpoint')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    recorder = Recorder(model)
    targets = find_targets(args.pictures or first_images(cfg, args.images), args.out_dir)
    load_weights(model, args.checkpoint)
    model.eval().to(get_device())
    bgr_to_rgb = cfg.model.data_preprocessor.get('bgr_to_rgb', False)
    # Of a picture alone there are no annotations.
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if 'LoadAnnotations' not in str(step['type'])]
    pipeline = Compose(steps)
    for image, target in targets.items():
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([pipeline(dict(img_path=image, img_id=0))]))
        height, width = sample.img_shape  # without the padding
        rows = []
        for view in recorder.views:
            picture = to_picture(view.image, model.data_preprocessor, bgr_to_rgb)[:height, :width]
            rows.append(draw_layers(picture, view.network, {view.layer: view.chosen}, view.cell))
        recorder.views.clear()
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), stack_rows(rows))
        print(target)


if __name__ == '__main__':
    main()
