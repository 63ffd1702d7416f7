"""Load a foreign checkpoint into a network, and say exactly what happened."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..errors import UserError

# Where files keep their weights; the first that is there counts.
WEIGHT_KEYS = ('state_dict', 'model', 'module')
# What wrappers put before every name.
WRAPPER_PREFIXES = ('module.', '_orig_mod.')


@dataclass
class LoadReport:
    """What became of each key when weights met a network.

    Args:
        loaded (list[str]): Keys of the network that the file fills.
        missing (list[str]): Keys of the network that the file lacks.
        unexpected (list[str]): Keys of the file that the network lacks.
        mismatched (dict[str, tuple[tuple[int, ...], tuple[int, ...]]]): Keys of both whose shapes differ, with the
            file's shape and the network's.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def summary(self) -> str:
        """One line with the four counts and the first few names of what was not loaded."""
        parts = [f'{len(self.loaded)} keys loaded']
        for kind in ('missing', 'unexpected', 'mismatched'):
            keys = list(getattr(self, kind))
            parts.append(f'{len(keys)} {kind}' + (f' ({_abridge(keys)})' if keys else ''))
        return ', '.join(parts)


def _abridge(keys: list[str], most: int = 8) -> str:
    return ', '.join(keys[:most]) + (f', … {len(keys) - most} more' if len(keys) > most else '')


def weights_of(checkpoint: Mapping) -> dict[str, Tensor]:
    """The weights in a checkpoint of any common layout, without the prefixes of wrappers.

    Args:
        checkpoint (Mapping): What the file held: the weights themselves, or a dict with them under ``state_dict``,
            ``model`` or ``module``.

    Returns:
        dict[str, Tensor]: Names and tensors.
    """
    for key in WEIGHT_KEYS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    weights = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    for prefix in WRAPPER_PREFIXES:
        weights = strip_prefix(weights, prefix) or weights
    return weights


def strip_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with ``prefix``, named without it."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def filter_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let each part of a model that has a ``checkpoint_filter`` rename the weights that are its own.

    Args:
        model (nn.Module): A detector, a segmentor, or a backbone alone.
        weights (Mapping[str, Tensor]): Weights of the whole, named as in the file.

    Returns:
        dict[str, Tensor]: Weights named as in the model.
    """
    weights = dict(weights)
    for name, module in model.named_modules():
        if hasattr(module, 'checkpoint_filter'):
            prefix = f'{name}.' if name else ''
            own = strip_prefix(weights, prefix)
            weights = {key: value for key, value in weights.items() if not key.startswith(prefix)}
            weights |= {prefix + key: value for key, value in module.checkpoint_filter(own).items()}
    return weights


def compare(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> LoadReport:
    """Match the weights of a file with what a network expects, by name and shape.

    Args:
        expected (Mapping[str, Tensor]): The network's ``state_dict``.
        weights (Mapping[str, Tensor]): The file's weights.
    """
    report = LoadReport(unexpected=[name for name in weights if name not in expected])
    for name, tensor in expected.items():
        if name not in weights:
            # Counts how often BatchNorm was trained; older files lack it, and nothing depends on it.
            if not name.endswith('num_batches_tracked'):
                report.missing.append(name)
        elif weights[name].shape != tensor.shape:
            report.mismatched[name] = (tuple(weights[name].shape), tuple(tensor.shape))
        else:
            report.loaded.append(name)
    return report


def log_report(report: LoadReport, source: str, quiet: Iterable[str] = ()) -> None:
    """Log a report in one line: a warning where anything is missing or does not fit.

    Args:
        report (LoadReport): The report.
        source (str): Where the weights came from.
        quiet (Iterable[str]): Keys that may be missing without a warning, such as norms that only a dense network has.
    """
    alarming = set(report.missing) - set(quiet) or report.mismatched
    print_log(
        f'{source}: {report.summary()}',
        logger='current',
        level=logging.WARNING if alarming else logging.INFO,
    )


def load_pretrained(module: nn.Module, checkpoint: str, prefix: str | None = None) -> LoadReport:
    """Load a checkpoint file into a backbone and report every key.

    The authors' files are taken as they are: weights under ``state_dict``, ``model`` or at the top, with or without
    ``module.``, of a classifier or a dense network, a backbone alone or a whole detector (``backbone.``). The network's
    ``checkpoint_filter``, where it has one, renames what is left.

    Args:
        module (nn.Module): The network.
        checkpoint (str): A path, or an address of any scheme that mmengine's ``CheckpointLoader`` knows.
        prefix (str, optional): Take only the entries below this prefix. Defaults to ``'backbone.'`` where the file has
            such entries.

    Returns:
        LoadReport: What was loaded, missing, unexpected and mismatched; also logged.

    Raises:
        UserError: If the file is not there, nothing in it fits, or it holds the weights of another size.
    """
    name = type(module).__name__
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='current')
    except FileNotFoundError as error:
        raise UserError(
            f'checkpoint {checkpoint!r} for {name} does not exist; set `init_cfg.checkpoint` to a file of weights, or '
            '`init_cfg=None` to start from random ones'
        ) from error
    weights = weights_of(content)
    prefix = prefix or 'backbone.'
    weights = strip_prefix(weights, prefix if prefix.endswith('.') else prefix + '.') or weights
    file_names = list(weights)
    weights = filter_weights(module, weights)
    expected = module.state_dict()
    report = compare(expected, weights)
    source = f'weights of {name} from {checkpoint}'
    if report.mismatched:
        key, (given, wanted) = next(iter(report.mismatched.items()))
        raise UserError(
            f'{source}: {len(report.mismatched)} of {len(expected)} keys have another shape, such as {key!r} with '
            f'{given} in the file and {wanted} in the network; the file is of another size: set `arch` to match it'
        )
    if not report.loaded:
        raise UserError(
            f'{source}: not one of the {len(file_names)} keys of the file fits; it has names such as '
            f'{file_names[:3]}, the network such as {list(expected)[:3]}; it is a checkpoint of another network'
        )
    log_report(report, source, quiet=getattr(module, 'new_keys', ()))
    module.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    return report
