"""What the tools share: arguments, checks made before anything is written, one-line errors."""

import argparse
import functools
import importlib.util
import inspect
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from mmengine.config import Config, DictAction
from mmengine.model import ImgDataPreprocessor
from mmengine.runner import Runner

from .data_checks import report_annotations
from .errors import UserError, nearest
from .registry import MODELS, type_name

if TYPE_CHECKING:
    from .datasets import DetectionData, SegmentationData

TOOLBOXES = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation'}  # scope: name of the package
CONFIG_SUFFIXES = ('.py', '.yml', '.yaml', '.json')
# What mmengine reads from the top of a config beside the runner's own arguments.
TOP_LEVEL_KEYS = {
    *inspect.signature(Runner).parameters,
    *('compile', 'custom_imports', 'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy'),
    *('sync_bn', 'tta_model', 'tta_pipeline'),
}
# What is answered in one line; the second is what compat raises about a file that is no checkpoint, or an unsafe one.
ANSWERED = (UserError, pickle.UnpicklingError)
MINI_DATA = 'tools/data/make_mini.py'  # of a clone; a wheel does not have it, nor the configs for it
DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What backends of the visualizer import; one of them is enough.
BACKEND_PACKAGES = {
    'TensorboardVisBackend': ('tensorboard', 'tensorboardX'),
    'WandbVisBackend': ('wandb',),
    'MLflowVisBackend': ('mlflow',),
    'ClearMLVisBackend': ('clearml',),
    'NeptuneVisBackend': ('neptune',),
    'DVCLiveVisBackend': ('dvclive',),
    'AimVisBackend': ('aim',),
}
LOST_WORKER = 'DataLoader worker (pid'  # how torch begins its error
CLONE = Path(__file__).resolve().parents[1]

P = ParamSpec('P')
T = TypeVar('T')


def one_line_errors(main: Callable[P, T]) -> Callable[P, T]:
    """Let ``main`` answer what the user can put right by one line and exit status 2; the rest keeps its traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            # Torch raises its own error whenever the system tells of the worker's end: from here on it is answered.
            with _lost_worker():
                return main(*args, **kwargs)
        except ANSWERED as error:
            message = str(error)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                message = (
                    f'memory ran out: {_last_line(error)}; smaller batches or pictures need less (in training '
                    '`train_dataloader.batch_size`, `model.backbone.with_cp=True` and --amp; large pictures by tiles: '
                    '`--slice 1024` of predict.py)'
                )
            elif LOST_WORKER in str(error):
                _silence_torch()
                message = (
                    f'a worker of the data loader was killed, most often because memory ran out: {_last_line(error)}; '
                    'set `train_dataloader.num_workers` lower, and go on with --resume'
                )
            else:
                raise
        if 'Original Traceback' in message:  # of a worker of the data loader
            message = _last_line(message).partition('Error: ')[2]
        sys.stdout.flush()
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)

    return wrapped


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or the CPU."""
    no_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return no_memory or isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def _lost_worker() -> Iterator[None]:
    """Where a pipe to a worker of a data loader breaks before torch knows that the worker is gone, say so as torch."""
    try:
        yield
    except RuntimeError as error:
        if LOST_WORKER in str(error):
            _silence_torch()
        raise
    except (ConnectionError, EOFError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).parts[-3:] == ('utils', 'data', 'dataloader.py') for frame in frames):
            _silence_torch()
            raise RuntimeError(f'{LOST_WORKER}: unknown) is gone: {error}') from error
        raise


def _silence_torch() -> None:
    """Once is enough: for each worker that ends later, torch's handler would raise its error amid the answer."""
    if sys.platform != 'win32':
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _last_line(error: object) -> str:
    return (str(error).strip().splitlines() or [''])[-1]


# Arguments


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default: work_dirs/NAME_OF_CONFIG')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # torch.distributed.launch hands it over; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        type=_assignment,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, such as `model.backbone.arch=b24`; lists as '
        'key="[a,b]" or key=a,b without spaces. A key that the config lacks is added, unless it is nearly '
        'the name of one that is there, or begins with a name that no config knows',
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and what belongs to it."""
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='your own data in place of those of the config: COCO, Pascal VOC or YOLO for a detector, images and '
        'labels in parallel folders for a segmentor; classes, datasets, metrics and recipe follow from them',
    )
    parser.add_argument(
        '--val-share',
        type=float,
        metavar='SHARE',
        help='share of the images of --data for validation, where the folder has no split; default: 0.2',
    )
    parser.add_argument(
        '--zero-label',
        choices=['class', 'void'],
        help='what label 0 (black) in the files of --data is, for a segmentor; default: what the data say',
    )


def _assignment(text: str) -> str:
    if '=' not in text.lstrip('='):
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form key=value')
    return text


# Files and settings, checked before anything is written


def load_config(path: str, cfg_options: dict | None = None) -> Config:
    """Read a config, apply ``--cfg-options`` and check what can be checked without building.

    Args:
        path (str): The config file.
        cfg_options (dict, optional): Dotted keys and the values to set.

    Raises:
        UserError: If the file is not there or is no config, an option's key is mis-spelt, or a network of ours is
            given an option that it does not have.
    """
    check_file(path, 'config')
    if Path(path).suffix not in CONFIG_SUFFIXES:
        raise UserError(f'{path!r} is no config (one of {", ".join(CONFIG_SUFFIXES)}); CONFIG comes before CHECKPOINT')
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:  # a base of a toolbox that is not installed
        raise UserError(f'config {path!r}: {error}') from error
    if cfg_options:
        check_option_keys(cfg, cfg_options)
        cfg.merge_from_dict(cfg_options)
    scope = cfg.get('default_scope')
    if scope is None and 'model' in cfg:  # as in configs that name classes; the model's class tells the toolbox
        kind = cfg.model.get('type')
        scope = (kind.__module__ if isinstance(kind, type) else str(kind)).partition('.')[0]
    if scope not in TOOLBOXES:
        raise UserError(
            f'`default_scope` of {path} is {cfg.get("default_scope")!r}; set it to one of {sorted(TOOLBOXES)}'
        )
    cfg.default_scope = scope
    check_model_options(cfg.model)
    _check_mean(cfg)
    return cfg


def _check_mean(cfg: Config) -> None:
    """Refuse a mean of other than 1 or 3 values, which are all that mmengine's preprocessor for images takes."""
    mean = (cfg.model.get('data_preprocessor') or {}).get('mean')
    if not isinstance(mean, list | tuple) or len(mean) in (1, 3):
        return
    if cfg.default_scope == 'mmdet' or _mmseg_takes_1_or_3():
        raise UserError(
            f'`model.data_preprocessor.mean` has {len(mean)} values, and {TOOLBOXES[cfg.default_scope]} as it is '
            'installed takes 1 or 3; for pictures of other '
            'channels set `mean` and `std` to one value for all, and `bgr_to_rgb=False`'
        )


def _mmseg_takes_1_or_3() -> bool:
    """That of the maintained fork has mmdet's base; the other takes a mean of any number."""
    from mmseg.models import SegDataPreProcessor

    return issubclass(SegDataPreProcessor, ImgDataPreprocessor)


def is_remote(path: str) -> bool:
    """Whether a path is an address such as ``https://…`` or ``s3://…``."""
    return '://' in path


def check_file(path: str, kind: str) -> None:
    """Refuse a path that is no file on this machine; addresses pass.

    Raises:
        UserError: With the nearest name in the same folder.
    """
    if is_remote(path) or Path(path).is_file():
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise UserError(f'{kind} {path!r} does not exist: there is no folder {str(folder)!r}')
    hint = nearest(Path(path).name, (file.name for file in folder.iterdir() if file.is_file()))
    raise UserError(f'{kind} {path!r} does not exist{hint}; look into {str(folder)!r}')


def check_option_keys(cfg: Config, options: dict) -> None:
    """Refuse keys of ``--cfg-options`` that look mis-spelt; mmengine would add them, and nobody would read them.

    A key that the config lacks is right where it is meant to be added (``model.backbone.init_cfg.checkpoint``). It is
    taken for a slip if a key beside it has nearly the same name, or if it begins with a name that is neither in the
    config nor known to mmengine.

    Raises:
        UserError: With the nearest key.
    """
    for key in options:
        node, path, parts = cfg.to_dict(), '', key.split('.')
        for number, part in enumerate(parts, 1):
            where = f'`{path}`' if path else 'the config'
            if isinstance(node, list | tuple):
                if not part.isdigit() or int(part) >= len(node):
                    raise UserError(
                        f'--cfg-options {key}: {where} is a list; name an element by its number, 0 to {len(node) - 1}'
                    )
                if number == len(parts):  # which mmengine cannot do
                    raise UserError(
                        f'--cfg-options {key}: {where} is a list; set it as a whole, or a key in its element'
                    )
                node = node[int(part)]
            elif not isinstance(node, dict):
                raise UserError(
                    f'--cfg-options {key}: {where} is {node!r} and has no {part!r} in it; set {where} itself'
                )
            elif part in node:
                node = node[part]
            else:
                hint = nearest(part, node, cutoff=0.8)
                if hint or not path and part not in TOP_LEVEL_KEYS:
                    raise UserError(
                        f'--cfg-options {key}: {where} has no key {part!r}'
                        f'{hint or nearest(part, {*node, *TOP_LEVEL_KEYS})}; '
                        'set one that is there, or write the new one into a config file'
                    )
                break  # a key to be added
            path = f'{path}.{part}'.lstrip('.')


def check_model_options(node: object, path: str = 'model') -> None:
    """Refuse types and options that do not exist, for each network of ours in a model's config.

    Args:
        node (object): The model's config, or a part of it.
        path (str): Where that part stands.

    Raises:
        UserError: With the nearest name.
    """
    if isinstance(node, list | tuple):
        for i, child in enumerate(node):
            check_model_options(child, f'{path}.{i}')
    if not isinstance(node, dict):
        return
    kind = node.get('type')
    if str(getattr(kind, '__module__', kind)).startswith('mmvisattn.'):
        name = type_name(kind)
        network = MODELS.get(kind) if isinstance(kind, str) else kind
        if not callable(network):
            raise UserError(
                f'`{path}.type`: mmvisattn has no {name!r}{nearest(name, MODELS.module_dict)}; set it to one of '
                f'{sorted(MODELS.module_dict)}'
            )
        parameters = inspect.signature(network).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            for option in set(node) - {'type', '_scope_', *parameters}:
                raise UserError(
                    f'`{path}.{option}`: {name} has no option {option!r}{nearest(option, parameters)}; '
                    f'set one of {", ".join(parameters)}'
                )
    for key, child in node.items():
        if not key.endswith('_cfg'):  # those of layers also hold what the builder takes for itself
            check_model_options(child, f'{path}.{key}')


def check_data(cfg: Config, *dataloaders: str) -> None:
    """Refuse a run whose data are not there.

    Args:
        cfg (Config): The config.
        dataloaders (str): Names of the data loaders that the run will use, such as ``'train_dataloader'``.

    Raises:
        UserError: With the files and folders that are expected, and in a clone the command that draws the mini data.
    """
    for name in dataloaders:
        for path, dataset in _datasets((cfg.get(name) or {}).get('dataset'), f'{name}.dataset'):
            root = dataset.get('data_root') or ''
            parts = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            expected = {part: Path(root, part) for part in parts if part and not is_remote(root + part)}
            missing = [part for part, target in expected.items() if not target.exists()]
            if missing:
                tree = '\n'.join(f'  {part}' + ('  <- missing' if part in missing else '') for part in expected)
                small = (
                    f', or draw a small set with `python {MINI_DATA} data/mini` and take a config of configs/mini'
                    if (CLONE / MINI_DATA).exists()
                    else ''
                )
                raise UserError(
                    f'the data of `{name}` are not there: {expected[missing[0]]} does not exist; put them there, set '
                    f'`{path}.data_root`{small}; expected:\n{root or "."}\n{tree}'
                )
            annotations, images = expected.get(parts[0]), expected.get((dataset.get('data_prefix') or {}).get('img'))
            if type_name(dataset.get('type')) == 'CocoDataset' and annotations and images and not process_number():
                if left_out := report_annotations(annotations, images):
                    print(f'`{path}`: {left_out}', flush=True)


def process_number() -> int:
    """Number of this process among those of the run, before they are connected."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))


def _datasets(node: dict | None, path: str) -> Iterator[tuple[str, dict]]:
    """The datasets below wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if node is None:
        return
    if 'dataset' in node:
        yield from _datasets(node['dataset'], f'{path}.dataset')
    elif 'datasets' in node:
        for i, child in enumerate(node['datasets']):
            yield from _datasets(child, f'{path}.datasets.{i}')
    else:
        yield path, node


def use_data(
    cfg: Config, args: argparse.Namespace, checkpoint: str | None = None
) -> 'DetectionData | SegmentationData | None':
    """Let a config use the folder of ``--data``, where one is given.

    Args:
        cfg (Config): The config, changed in place.
        args (argparse.Namespace): Arguments of :func:`add_data_arguments` and ``cfg_options``.
        checkpoint (str, optional): A trained model, for a test; classes, sizes and anchors are those of its training.

    Returns:
        DetectionData | SegmentationData | None: What was found, or None without ``--data``.

    Raises:
        UserError: If the folder does not hold what the config needs.
    """
    share = val_share(args)
    if args.data is None:
        return None
    from .datasets.configure import Trained, use_folder

    return use_folder(
        cfg,
        args.data,
        args.cfg_options,
        zero_label=args.zero_label,
        val_share=share,
        trained=Trained.of(checkpoint) if checkpoint else None,
    )


def val_share(args: argparse.Namespace) -> float:
    """The share of ``--val-share`` or its default.

    Raises:
        UserError: If a flag about ``--data`` is given without it, or the share is none.
    """
    from .datasets.reading import VAL_SHARE

    given = {'--val-share': args.val_share, '--zero-label': args.zero_label}
    if args.data is None:
        if alone := [flag for flag, value in given.items() if value is not None]:
            raise UserError(f'{alone[0]} is about the folder of --data, and there is none; add --data FOLDER')
    if args.val_share is not None and not 0 < args.val_share < 1:
        raise UserError(f'--val-share {args.val_share}: give a share above 0 and below 1')
    return VAL_SHARE if args.val_share is None else args.val_share


# The runner


def prepare(args: argparse.Namespace) -> Config:
    """The config of a training or a test, with what the common arguments say about it.

    Args:
        args (argparse.Namespace): Arguments of :func:`add_runner_arguments` and ``config``.

    Raises:
        UserError: As :func:`load_config`.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    add_hook(cfg, 'CheckpointReportHook')
    if cfg.default_scope == 'mmseg':
        add_hook(cfg, 'PictureSizeHook')
    _follow_workers(cfg)
    _check_backends(cfg)
    _check_loop(cfg)
    for name in DATALOADERS:
        _check_files(cfg.get(name))
    return cfg


def _check_files(node: object) -> None:
    """Have the files looked at before ``LoadImageFromFile``, where they are files of this machine."""
    if isinstance(node, dict):
        pipeline = node.get('pipeline') or []
        first = pipeline[0] if isinstance(pipeline, list | tuple) and pipeline else {}
        if type_name(first.get('type')) == 'LoadImageFromFile' and not (
            first.get('backend_args') or first.get('file_client_args')
        ):
            node['pipeline'] = [dict(type='mmvisattn.CheckFiles'), *pipeline]
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            _check_files(child)


def _check_backends(cfg: Config) -> None:
    """Refuse visualizer backends whose package is not installed."""
    visualizer = cfg.get('visualizer') or {}
    for backend in [*(visualizer.get('vis_backends') or []), *(cfg.get('vis_backends') or [])]:
        name = type_name(backend.get('type'))
        packages = BACKEND_PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f'`visualizer.vis_backends`: {name} needs {packages[0]}, which is not installed: '
                f'`pip install {packages[0]}`, or take the backend out'
            )


def _check_loop(cfg: Config) -> None:
    """Refuse a length of training by the other unit than that of the loop."""
    loop = cfg.get('train_cfg') or {}
    by_iter = type_name(loop.get('type')) == 'IterBasedTrainLoop' or loop.get('by_epoch') is False
    wrong, right = ('max_epochs', 'max_iters') if by_iter else ('max_iters', 'max_epochs')
    if wrong in loop and (right in loop or 'type' in loop or 'by_epoch' in loop):
        raise UserError(
            f'`train_cfg.{wrong}`: training goes by {"iteration" if by_iter else "epoch"} here; set '
            f'`train_cfg.{right}`, and the ends of `param_scheduler` with it'
        )


def _follow_workers(cfg: Config) -> None:
    """Without workers, drop what torch allows with workers alone, so that `num_workers=0` needs no second setting."""
    for name in DATALOADERS:
        loader = cfg.get(name) or {}
        if loader.get('num_workers') == 0:
            loader.pop('prefetch_factor', None)
            loader.pop('persistent_workers', None)
            loader.pop('timeout', None)


def add_hook(cfg: Config, name: str) -> None:
    """Add a hook of ours to a config, unless it is there."""
    hooks = cfg.get('custom_hooks') or []
    if not any(type_name(hook['type']) == name for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=f'mmvisattn.{name}')]
