"""Draw what a detector (mmdet) or a segmentor (mmseg) sees on pictures and videos, and write it as files."""

import argparse
import glob
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmvisattn import cli
from mmvisattn.datasets import read_detection, read_segmentation
from mmvisattn.datasets.configure import Trained, set_num_classes
from mmvisattn.datasets.description import distinct_palette
from mmvisattn.datasets.files import IMAGE_SUFFIXES, read_head
from mmvisattn.datasets.recipe import Choices
from mmvisattn.engine import report_checkpoint, watch_images
from mmvisattn.errors import UserError
from mmvisattn.inference import CocoResults, Prediction, check_labels_fit, predict_sliced, save_labels
from mmvisattn.registry import type_name

import cv2
import numpy as np
import torch
from mmcv.video import VideoReader
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from mmengine.structures import PixelData
from mmengine.visualization import Visualizer
from torch import nn

DRAWN_BYTES = 150  # of memory that the visualizers need for a pixel
DRAWN_SIDE = 4096  # pixels of the longer side of a drawn picture of tiles
VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'images',
        nargs='*',
        metavar='IMAGE',
        help="picture, video, folder of pictures, or quoted pattern of them ('shots/**/*.jpg'); with --data none",
    )
    parser.add_argument('config', help='config file; that of a training on your own data is in its work directory')
    parser.add_argument(
        'checkpoint',
        help='checkpoint file; the names of the classes come from it, or from the config where it has none',
    )
    parser.add_argument(
        '--out-dir',
        default='work_dirs/predictions',
        help='where the drawn pictures go, under the names of the given ones; default: %(default)s',
    )
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='what was found, as a file: of a detector FILE.json in the format of COCO, with scores; of a segmentor a '
        'folder of PNGs with the number of the class in each pixel',
    )
    parser.add_argument('--device', help='such as cpu or cuda:1; default: the GPU where there is one')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='draw and write detections of at least this score, 0 to 1; default: %(default)s',
    )
    parser.add_argument(
        '--slice',
        type=int,
        metavar='SIDE',
        help='cut pictures of more than SIDE pixels into overlapping tiles, for small objects in large ones; an object '
        'as large as the overlap is whole in one of them',
    )
    parser.add_argument(
        '--overlap',
        type=float,
        default=0.2,
        metavar='SHARE',
        help='share of a tile that its neighbours have in common, 0 to 0.9; default: %(default)s',
    )
    cli.add_data_arguments(parser)
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def is_video(path: Path) -> bool:
    """Whether its name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_images(paths: Sequence[str], out_dir: str) -> dict[Path, Path]:
    """The pictures and videos among files, folders and patterns, and where each is to be written.

    Raises:
        UserError: If one is missing or no picture, a folder has none, or two have the same name.
    """
    images = []
    for path in map(Path, paths):
        if path.is_dir():
            known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in known)
            if not found:
                raise UserError(f'folder {str(path)!r} has no pictures ({", ".join(known)})')
            images += found
        elif not path.exists() and glob.has_magic(str(path)):
            found = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not found:
                raise UserError(f'no file fits the pattern {str(path)!r}')
            images += found
        else:
            cli.check_file(str(path), 'image')
            images.append(path)
    targets: dict[Path, Path] = {}
    for image in images:
        # A broken one in a folder is told when its turn comes.
        if not is_video(image) and image.suffix.lower() not in IMAGE_SUFFIXES and not cv2.haveImageReader(str(image)):
            raise UserError(f'{str(image)!r} is no picture that OpenCV reads; the order is IMAGE... CONFIG CHECKPOINT')
        name = f'{image.stem}.mp4' if is_video(image) else image.name
        target = Path(out_dir, name)
        if target in targets.values() or target.exists() and target.samefile(image):
            raise UserError(f'drawing {str(image)!r} would overwrite {str(target)!r}; give another --out-dir')
        targets[image] = target
    return targets


def use_data(cfg: Config, args: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    """The pictures of the split that ``tools/test.py --data`` measures on, and the names of the classes.

    Args:
        cfg (Config): The config; its heads are given the number of the classes.
        args (argparse.Namespace): The arguments.

    Returns:
        tuple[list[str], list[str] | None]: Paths of pictures, and names, or None without ``--data``.

    Raises:
        UserError: If pictures are given as well, or the folder does not hold what the config needs.
    """
    if not args.data:
        if not args.images:
            raise UserError('no pictures; the order is IMAGE... CONFIG CHECKPOINT, or give --data FOLDER')
        return args.images, None
    if args.images:
        raise UserError(f'--data gives the pictures of its folder, and {args.images[0]!r} is another; give one of them')
    trained = Trained.of(args.checkpoint)
    names, choices = trained.classes, Choices(args.cfg_options)
    share = cli.val_share(args)
    if cfg.default_scope == 'mmseg':
        labels = read_segmentation(args.data, args.zero_label, share, names)
        pairs = labels.pairs
        images = [str(image) for image, _ in next(pairs[name] for name in ('test', 'val') if name in pairs)]
        data: Any = labels
    else:
        data = read_detection(args.data, False, share, names)
        split = next(data.splits[name] for name in ('test', 'val') if name in data.splits)
        images = [str(Path(split.image_root, image['file_name'])) for image in split.images]
    set_num_classes(cfg.model, len(data.classes))
    trained.hand_over(cfg, choices)
    cfg.merge_from_dict(args.cfg_options or {})
    for line in [*data.notes, *choices.lines]:
        print(f'data: {line}', file=sys.stderr)
    if data.ignore_orientation:
        innermost_dataset(cfg).pipeline[0]['color_type'] = 'color_ignore_orientation'
    return images, data.classes


def innermost_dataset(cfg: Config) -> ConfigDict:
    """The dataset of the test, without wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.dataset if 'dataset' in dataset else dataset.datasets[0]
    return dataset


def build_model(cfg: Config, checkpoint: str, device: str, names: list[str] | None = None) -> nn.Module:
    """The model with its weights, and the names and colours of its classes in ``dataset_meta``.

    Args:
        cfg (Config): The config.
        checkpoint (str): The file of the weights.
        device (str): Where the model is to be.
        names (list[str], optional): Names of the classes, for a checkpoint that has none.

    Raises:
        UserError: If the checkpoint is of another model, or there are fewer names than classes.
    """
    model = MODELS.build(cfg.model)
    watch_images(model)  # as in training and test, where a hook does it
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    report_checkpoint(model, content)
    load_state_dict(model, content['state_dict'])

    meta = content.get('meta') or {}
    # The upper case is that of the toolboxes' earlier versions.
    own = meta.get('dataset_meta') or {key.lower(): meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    if names and 'classes' not in own:
        own = dict(own, classes=tuple(names), palette=distinct_palette(len(names)))
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
            f'the model tells {most} classes apart and {source} names {len(names)}; give the config that the training '
            'wrote into its work directory, or set `test_dataloader.dataset.metainfo.classes` to the names of all'
        )


def build_visualizer(cfg: Config, model: nn.Module) -> Visualizer:
    """The config's visualizer, which writes nothing itself."""
    visualizer = VISUALIZERS.build({key: value for key, value in cfg.visualizer.items() if key != 'vis_backends'})
    visualizer.dataset_meta = model.dataset_meta
    return visualizer


def read(reader: Callable[[dict], Any], image: Path) -> np.ndarray:
    """A picture, 8 bits: (H, W, 3) BGR, or what `color_type` makes of it.

    Args:
        reader (Callable[[dict], Any]): The first step of the test pipeline.
        image (Path): The file.

    Raises:
        UserError: If the step cannot read it, or it has no 8 bits a channel.
    """
    try:
        picture = reader(dict(img_path=str(image)))['img']
    except Exception as error:  # readers say it in many ways
        raise UserError('it cannot be read: damaged, or no picture of a kind that the pipeline reads') from error
    if picture.dtype != np.uint8:
        raise UserError(f'its values are of type {picture.dtype}, and pictures have 8 bits a channel here')
    head = read_head(image)
    if head and head.deep and picture.max() < 64:
        print(f'{image}: of its more than 8 bits a channel the upper 8 are read, and nearly black', file=sys.stderr)
    return picture


class Predictor:
    """A model, its test pipeline, and what draws its predictions.

    Args:
        cfg (Config): The config.
        model (nn.Module): Detector or segmentor.
        args (argparse.Namespace): The arguments.
    """

    def __init__(self, cfg: Config, model: nn.Module, args: argparse.Namespace) -> None:
        steps = innermost_dataset(cfg).pipeline
        whole = Compose([step for step in steps if not type_name(step['type']).endswith('Annotations')])
        self.reader = whole.transforms[0]
        array = Compose([dict(type='LoadImageFromNDArray')])
        self.pipeline = Compose([*array.transforms, *whole.transforms[1:]])
        self.model = model
        self.visualizer = build_visualizer(cfg, model)
        self.options = dict(pred_score_thr=args.score_thr) if cfg.default_scope == 'mmdet' else {}
        self.side, self.overlap, self.score_thr = args.slice, args.overlap, args.score_thr
        palette = model.dataset_meta['palette']
        self.palette = (
            palette if isinstance(palette, tuple | list) else distinct_palette(len(model.dataset_meta['classes']))
        )

    def read(self, image: Path) -> np.ndarray:
        """A picture, see :func:`read`."""
        return read(self.reader, image)

    @torch.no_grad()
    def sample(self, picture: np.ndarray) -> Any:
        """The toolbox's data sample of a picture, 8 bits, with the prediction."""
        (sample,) = self.model.test_step(pseudo_collate([self.pipeline(dict(img=picture, img_id=0))]))
        return sample

    def predict(self, picture: np.ndarray) -> Prediction:
        """The prediction of a picture, 8 bits, by tiles where it is larger than one.

        Raises:
            UserError: If the memory is not enough for it.
        """
        if self.side is None:
            check_labels_fit(self.model, *picture.shape[:2], DRAWN_BYTES)
            return Prediction(self.sample(picture))
        return predict_sliced(self.sample, picture, self.side, self.overlap, self.score_thr)

    def draw(self, name: str, picture: np.ndarray, prediction: Prediction) -> np.ndarray:
        """A picture, 8 bits, with its prediction drawn over it, (H, W, 3), BGR."""
        picture = to_bgr(picture)
        sample: Any = prediction.sample
        if 'pred_sem_seg' in sample:
            # mmseg's visualizer indexes arrays by it, and numpy takes a tensor of one element for a number.
            sample = sample.numpy()
        times = min(DRAWN_SIDE / max(picture.shape[:2]), 1.0) if self.side else 1.0
        if times < 1:
            print(f'{name}: drawn at {times:.0%} of its size', file=sys.stderr)
            picture = cv2.resize(picture, None, fx=times, fy=times, interpolation=cv2.INTER_AREA)
            sample = shrink(sample, picture.shape[:2], times)
        if prediction.masks:
            picture = picture.copy()
            for (tile, mask), label in zip(prediction.masks, sample.pred_instances.labels.tolist()):
                left, top, right, bottom = (round(edge * times) for edge in tile)
                part = picture[top:bottom, left:right]
                if not part.size:  # less than a pixel
                    continue
                inside = cv2.resize(mask.astype(np.uint8), part.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
                part[inside] = (0.5 * part[inside] + 0.5 * np.array(self.palette[label][::-1])).astype(np.uint8)
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        self.visualizer.add_datasample(name, rgb, sample, draw_gt=False, **self.options)
        return cv2.cvtColor(self.visualizer.get_image(), cv2.COLOR_RGB2BGR)


def to_bgr(picture: np.ndarray) -> np.ndarray:
    """Three channels that can be drawn, (H, W, 3): those of a colour picture, the first one of any other."""
    if picture.ndim == 3 and picture.shape[2] in (3, 4):
        return picture[..., :3]
    return np.repeat(np.atleast_3d(picture)[..., :1], 3, axis=2)


def shrink(sample: Any, size: tuple[int, int], times: float) -> Any:
    """A data sample for a smaller picture: labels as arrays, or boxes.

    Args:
        sample (Any): The sample of the whole size.
        size (tuple[int, int]): Height and width of the smaller picture in pixels.
        times (float): How many times as large it is, less than 1.
    """
    small = sample.clone()
    if 'pred_sem_seg' in small:
        labels = cv2.resize(sample.pred_sem_seg.data[0].astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        small.pred_sem_seg = PixelData(data=labels[None])
    else:
        small.pred_instances.bboxes = sample.pred_instances.bboxes * times
    return small


def frames_of(predictor: Predictor, image: Path) -> tuple[float, Iterator[tuple[str, np.ndarray]]]:
    """Frames a second, and the name and picture of each; a picture is one of a single frame.

    Raises:
        UserError: If it cannot be read.
    """
    if not is_video(image):
        return 0.0, iter([(image.name, predictor.read(image))])
    video = VideoReader(str(image))
    if not video.opened or not len(video):
        raise UserError('it cannot be read: damaged, or no video of a kind that OpenCV reads')
    return video.fps or 25.0, (
        (f'{image.stem}-{i:06}.png', frame) for i, frame in enumerate(video) if frame is not None
    )


def process(
    predictor: Predictor, image: Path, target: Path, record: Callable[[str, np.ndarray, Prediction], None]
) -> None:
    """Predict and draw a picture or video into a file, and hand each prediction on."""
    rate, frames = frames_of(predictor, image)
    writer = None
    try:
        for name, picture in frames:
            prediction = predictor.predict(picture)
            drawn = predictor.draw(name, picture, prediction)
            record(name if rate else str(image), picture, prediction)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not rate:
                cv2.imwrite(str(target), drawn)
                return
            if writer is None:
                codec = cv2.VideoWriter_fourcc(*'mp4v')
                writer = cv2.VideoWriter(str(target), codec, rate, (drawn.shape[1], drawn.shape[0]))
            writer.write(drawn)
    finally:
        if writer is not None:
            writer.release()


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Predict, draw, and print the path of each drawn picture; exit status 1 where one could not be drawn."""
    args = parse_args(argv)
    targets = find_images(args.images, args.out_dir)
    cfg = cli.load_config(args.config, args.cfg_options)
    cli.check_file(args.checkpoint, 'checkpoint')
    check_arguments(args, cfg)
    images, names = use_data(cfg, args)
    if args.data:
        targets = find_images(images, args.out_dir)
    device = args.device or get_device()
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise UserError(f'--device {device}: torch sees no GPU; use --device cpu')
    init_default_scope(cfg.default_scope)
    model = build_model(cfg, args.checkpoint, device, names)
    predictor = Predictor(cfg, model, args)
    results = CocoResults(model.dataset_meta['classes'], args.score_thr)

    def record(name: str, picture: np.ndarray, prediction: Prediction) -> None:
        if not args.out:
            return
        sample: Any = prediction.sample
        if 'pred_sem_seg' in sample:
            labels = np.asarray(sample.pred_sem_seg.data.cpu())[0]
            save_labels(Path(args.out, f'{Path(name).stem}.png'), labels, predictor.palette)
        else:
            results.add(name, (picture.shape[1], picture.shape[0]), prediction)

    broken = 0
    for image, target in targets.items():
        try:
            process(predictor, image, target, record)
        # Whatever is wrong with a picture, the others are drawn.
        except Exception as error:
            broken += 1
            reason = str(error)
            if cli.out_of_memory(error):
                reason = f'memory ran out ({reason}); cut it into tiles: --slice 1024'
            elif not isinstance(error, UserError):  # perhaps not the picture's fault
                traceback.print_exc()
                reason = f'{type(error).__name__}, see above'
            print(f'error: {image} is not drawn: {reason}', file=sys.stderr)
            continue
        print(target)
    if args.out and cfg.default_scope == 'mmdet':
        results.save(Path(args.out))
    if broken:
        print(f'error: {broken} of {len(targets)} pictures could not be drawn', file=sys.stderr)
        sys.exit(1)


def check_arguments(args: argparse.Namespace, cfg: Config) -> None:
    """Refuse numbers out of range, and an ``--out`` of the other toolbox.

    Raises:
        UserError: With what is allowed.
    """
    if args.slice is not None and args.slice < 32:
        raise UserError(f'--slice {args.slice}: a tile has at least 32 pixels')
    if not 0 <= args.overlap <= 0.9:
        raise UserError(f'--overlap {args.overlap}: give a share from 0 to 0.9')
    if args.out and cfg.default_scope == 'mmdet' and not args.out.endswith('.json'):
        raise UserError(f'--out {args.out}: a detector writes one file in the format of COCO; name it .json')
    if args.out and cfg.default_scope == 'mmseg' and Path(args.out).suffix:
        raise UserError(f'--out {args.out}: a segmentor writes a PNG for each picture; name a folder')


if __name__ == '__main__':
    main()
