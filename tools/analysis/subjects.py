"""A network to look at, with what it takes to show it a picture."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvisattn import cli
from mmvisattn.checkpoint import load_pretrained
from mmvisattn.errors import UserError
from mmvisattn.registry import type_name

import cv2
import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from tools import predict

from . import networks
from .measure import parse_count, parse_size

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # mean and deviation, RGB, from 0 to 1


class Subject:
    """A detector or segmentor of a config, or a backbone by itself, in evaluation mode.

    Args:
        name (str): See ``networks.NAMES``.
        checkpoint (str, optional): File of weights. Defaults to None, random weights.
        device (str): Where it is. Defaults to ``'cpu'``.
        cfg_options (dict, optional): Settings that replace those of the config.
        size (tuple[int, int], optional): Height and width to which a backbone by itself is shown pictures. Defaults to
            None, their own.

    Raises:
        UserError: If there is no such network, or the checkpoint does not fit.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        device: str = 'cpu',
        cfg_options: dict | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.name, self.checkpoint, self.device, self.size = name, checkpoint, device, size
        self.cfg: Config | None = None
        torch.manual_seed(0)
        if checkpoint:
            cli.check_file(checkpoint, 'checkpoint')
        if networks.is_config(name):
            self.cfg = cli.load_config(networks.config_path(name) if '::' in name else name, cfg_options)
            init_default_scope(self.cfg.default_scope)
            self.model = self._build_model(self.cfg)
        else:
            if cfg_options:
                raise UserError(f'--cfg-options are for a config, and {name!r} is none; write options into its name')
            self.model = self._build_backbone()
        self.model.to(device).eval()

    def _build_model(self, cfg: Config) -> nn.Module:
        if self.checkpoint:
            return predict.build_model(cfg, self.checkpoint, self.device)
        model = MODELS.build(cfg.model)
        networks.initialise(model)
        dataset = DATASETS.build(dict(predict.innermost_dataset(cfg), lazy_init=True))
        model.dataset_meta = dataset.metainfo
        return model

    def _build_backbone(self) -> nn.Module:
        if self.name.startswith('timm:'):
            # Not ``networks.build``: here all levels are wanted.
            name = self.name.removeprefix('timm:')
            weights = dict(pretrained=True, pretrained_cfg_overlay=dict(file=self.checkpoint))
            try:
                return timm.create_model(name, features_only=True, **(weights if self.checkpoint else {}))
            except RuntimeError as error:
                raise UserError(f'{self.name!r}: {str(error).splitlines()[0]}; take another network of timm') from error
        network = networks.build(self.name, 'backbone', self.size or (224, 224))
        if self.checkpoint:
            load_pretrained(network, self.checkpoint)
        return network

    @property
    def backbone(self) -> nn.Module:
        """The backbone."""
        return getattr(self.model, 'backbone', self.model)

    def show(self, image: str) -> Any:
        """Run the network on a picture.

        Args:
            image (str): The file.

        Returns:
            Any: The toolbox's data sample with the prediction, or None of a backbone by itself.
        """
        with torch.no_grad():
            if self.cfg is not None:
                (sample,) = self.model.test_step(pseudo_collate([self.pipeline(dict(img_path=image, img_id=0))]))
                return sample
            picture = cv2.imread(image)
            if self.size:
                picture = cv2.resize(picture, self.size[::-1], interpolation=cv2.INTER_AREA)
            mean, std = IMAGENET
            normalised = (picture[..., ::-1] / 255 - mean) / std
            self.model(torch.from_numpy(normalised).float().permute(2, 0, 1)[None].to(self.device))
            return None

    @property
    def pipeline(self) -> Compose:
        """The test pipeline, for a picture without annotations."""
        steps = predict.innermost_dataset(self.cfg).pipeline
        return Compose([step for step in steps if not type_name(step['type']).endswith('Annotations')])

    def picture(self, image: Tensor, content: Sequence[int] | None = None) -> np.ndarray:
        """The normalised input of the network as a picture for OpenCV.

        Args:
            image (Tensor): (3, H, W).
            content (Sequence[int], optional): Height and width without the padding at the bottom and right.

        Returns:
            np.ndarray: (H, W, 3), BGR, uint8.
        """
        height, width = content or image.shape[1:]
        if self.cfg is None:
            mean, std = (255 * torch.as_tensor(value, device=image.device).view(-1, 1, 1) for value in IMAGENET)
            rgb = True
        else:
            preprocessor = self.model.data_preprocessor
            mean, std = getattr(preprocessor, 'mean', 0), getattr(preprocessor, 'std', 1)
            rgb = self.cfg.model.data_preprocessor.get('bgr_to_rgb', False)
        values = (image * std + mean).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray((values[..., ::-1] if rgb else values)[:height, :width])

    def test_images(self, count: int) -> list[str]:
        """Pictures of the test set, evenly spread.

        Raises:
            UserError: If there is no test set.
        """
        if self.cfg is None:
            raise UserError(f'{self.name!r} has no test set; give pictures')
        cli.check_data(self.cfg, 'test_dataloader')
        dataset = DATASETS.build(self.cfg.test_dataloader.dataset)
        count = min(count, len(dataset))
        return [dataset.get_data_info(i * len(dataset) // count)['img_path'] for i in range(count)]


def check_images(images: Sequence[str]) -> None:
    """Refuse what is no picture.

    Raises:
        UserError: If one is missing, or OpenCV does not read it.
    """
    for image in images:
        cli.check_file(image, 'image')
        if not cv2.haveImageReader(image):
            raise UserError(f'{image!r} is no picture that OpenCV reads; the order is NETWORK IMAGE...')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a network and pictures."""
    parser.add_argument('network', help=networks.NAMES)
    parser.add_argument('images', nargs='*', metavar='IMAGE', help='picture; default: some of the test set of a config')
    parser.add_argument(
        '--num-images',
        dest='count',
        type=parse_count,
        default=4,
        metavar='N',
        help='how many of the test set; default: %(default)s',
    )
    parser.add_argument(
        '--size', type=parse_size, metavar='HxW', help='of pictures for a backbone by itself; default: own'
    )
    parser.add_argument('--device', help='such as cpu or cuda:1; default: the GPU where there is one')
    cli.add_cfg_options(parser)


def stem(image: str) -> str:
    """What the files about a picture begin with."""
    return Path(image).stem
