"""What a work directory tells of its training: mmengine's scalars, step by step, and the config that was used."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mmvisattn.errors import UserError
from mmvisattn.registry import type_name

from mmengine.config import Config

SCALARS = '*/vis_data/scalars.json'  # a file each time the training was started
NO_METRICS = {'time', 'data_time', 'memory', 'step', 'iter', 'epoch'}


@dataclass(frozen=True)
class TrainingLog:
    """A training, of any model that mmengine's runner trained.

    Args:
        folder (Path): The work directory.
        config_file (Path): The config as the runner had it.
        config (Config): What stands there.
        steps (dict[int, dict[str, float]]): What was logged in training, by iteration: losses, ``time`` and, on a GPU,
            ``memory``.
        validations (dict[int, dict[str, float]]): Metrics, by epoch or iteration, see :attr:`unit`.
    """

    folder: Path
    config_file: Path
    config: Config
    steps: dict[int, dict[str, float]]
    validations: dict[int, dict[str, float]]

    @classmethod
    def read(cls, folder: str | Path) -> 'TrainingLog':
        """Read a work directory; of a training that was resumed all parts, later ones in the place of earlier.

        Raises:
            UserError: If there is no log of a training.
        """
        files = sorted(Path(folder).glob(SCALARS))  # the time is in the name
        steps: dict[int, dict[str, float]] = {}
        validations: dict[int, tuple[int, dict[str, float]]] = {}  # with the iteration before it
        for file in files:
            iteration, first = 0, True
            for line in _lines(file):
                if 'iter' in line:
                    iteration = int(line['step'])
                    if first:  # what an earlier start did beyond it is not part of this training
                        steps = {i: old for i, old in steps.items() if i < iteration}
                        validations = {i: old for i, old in validations.items() if old[0] < iteration}
                        first = False
                    steps[iteration] = line
                else:
                    validations[int(line['step'])] = iteration, line
        if not steps:
            raise UserError(
                f'{str(folder)!r} has no log of a training ({SCALARS} with losses): give the work directory of one '
                'that mmengine has run, with `LocalVisBackend` among `vis_backends`'
            )
        config_file = files[-1].with_name('config.py')
        if not config_file.is_file():
            raise UserError(f'{str(config_file)!r} is missing, which says how it was trained')
        config = Config.fromfile(config_file, import_custom_modules=False)
        metrics = {
            i: {key: value for key, value in line.items() if key not in NO_METRICS}
            for i, (_, line) in sorted(validations.items())
        }
        return cls(Path(folder), config_file, config, dict(sorted(steps.items())), metrics)

    @property
    def seed(self) -> int | None:
        """The seed of the config, or None where mmengine drew one."""
        return (self.config.get('randomness') or {}).get('seed')

    @property
    def unit(self) -> str:
        """By what validations are counted: ``'epoch'`` or ``'iteration'``."""
        loop = self.config.get('train_cfg') or {}
        by_epoch = loop.get('by_epoch', type_name(loop.get('type')) == 'EpochBasedTrainLoop')
        return 'epoch' if by_epoch else 'iteration'

    @property
    def length(self) -> int:
        """How many epochs or iterations the training was to have."""
        loop = self.config.get('train_cfg') or {}
        return loop['max_epochs' if self.unit == 'epoch' else 'max_iters']

    @property
    def metrics(self) -> list[str]:
        """What was measured in every validation."""
        return [
            key for key in next(iter(self.validations.values()), {}) if all(key in v for v in self.validations.values())
        ]

    @property
    def seconds(self) -> float:
        """Seconds an iteration, the median."""
        return median(self.of_steps('time').values())

    @property
    def memory(self) -> float | None:
        """Most memory of a GPU in MB, or None on a CPU."""
        return max(self.of_steps('memory').values(), default=None)

    def of_steps(self, key: str) -> dict[int, float]:
        """A figure of the training by iteration, where it was logged."""
        return {i: line[key] for i, line in self.steps.items() if key in line}

    def curve(self, metric: str) -> dict[int, float]:
        """A metric by epoch or iteration."""
        return {i: values[metric] for i, values in self.validations.items()}


def _lines(file: Path) -> Iterator[dict[str, float]]:
    """The numbers of each line; a last one that was cut off is left out."""
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        yield {key: value for key, value in line.items() if isinstance(value, int | float)}


def shared_steps(curves: Sequence[dict[int, float]]) -> list[int]:
    """The steps that all curves have."""
    return sorted(set.intersection(*(set(curve) for curve in curves)))
