"""Compare trainings by their work directories: metrics, speed, memory and FLOPs in a table, curves in a plot.

It reads what mmengine writes beside every training, of models of this package and others, detectors and segmentors.
Trainings with one config and different seeds are one row, with the mean and its 95 % interval by Student's t; so are
those that are given one name, as NAME=FOLDER. Of each row:

- metrics as the log has them at the last validation that all its trainings have;
- seconds an iteration, the median; most memory of a GPU, in MB, which mmengine logs on a GPU alone;
- parameters and FLOPs of the whole model for one image, counted as by get_flops.py.

Examples:
    python tools/analysis/compare.py work_dirs/fcvit-mini_fpn_ade20k work_dirs/flexvit-mini_upernet_ade20k
    python tools/analysis/compare.py ours=work_dirs/a0 ours=work_dirs/a1 theirs=work_dirs/b0 --metrics mIoU \
        --plot curves.svg --json table.json
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from mmvisattn import cli
from mmvisattn.errors import UserError, nearest
from mmvisattn.registry import type_name

from mmengine.config import Config
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import get_flops
from tools.analysis.intervals import half_width
from tools.analysis.measure import parse_output, parse_size
from tools.analysis.training_log import TrainingLog, shared_steps

# What may differ between trainings of one row.
OF_A_RUN = ('work_dir', 'randomness', 'resume', 'launcher', 'experiment_name')
# What is told unless --metrics says otherwise, where the log has any of them.
MAIN_METRICS = (
    *('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50', 'pascal_voc/mAP'),
    *('mIoU', 'mAcc', 'aAcc', 'mDice', 'mFscore'),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over trainings.

    Args:
        mean (float): The mean.
        half (float | None): Half the width of its 95 % interval; None of a single training.
    """

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Estimate':
        """From the value of each training."""
        if len(values) == 1:
            return cls(values[0], None)
        return cls(mean(values), half_width(values))

    def __str__(self) -> str:
        return f'{self.mean:.4g}' if self.half is None else f'{self.mean:.4g} ± {self.half:.2g}'


@dataclass
class Group:
    """Trainings that make one row.

    Args:
        name (str): What to call them.
        logs (list[TrainingLog]): The trainings.
        parameters (int, optional): Parameters of the model. Defaults to None, not counted.
        flops (int, optional): FLOPs of the model for one image. Defaults to None, not counted.
    """

    name: str
    logs: list[TrainingLog]
    parameters: int | None = None
    flops: int | None = None

    @property
    def seeds(self) -> str:
        """The seeds, or how many trainings there are where mmengine drew the seed of one."""
        seeds = [log.seed for log in self.logs]
        return f'{len(seeds)} unknown' if None in seeds else ', '.join(map(str, sorted(seeds)))

    @property
    def last(self) -> int:
        """The last validation that all have, in epochs or iterations."""
        return shared_steps([log.validations for log in self.logs])[-1]

    def at_last(self, metric: str) -> Estimate:
        """A metric at the last validation."""
        return Estimate.of([log.validations[self.last][metric] for log in self.logs])

    @property
    def seconds(self) -> Estimate:
        """Seconds an iteration."""
        return Estimate.of([log.seconds for log in self.logs])

    @property
    def memory(self) -> float | None:
        """Most memory of a GPU in MB, or None where it was not logged."""
        figures = [log.memory for log in self.logs if log.memory is not None]
        return max(figures, default=None)

    def curve(self, metric: str | None) -> dict[int, Estimate]:
        """A metric, or the loss if it is None, at the steps that all have."""
        curves = [log.of_steps('loss') if metric is None else log.curve(metric) for log in self.logs]
        return {step: Estimate.of([curve[step] for curve in curves]) for step in shared_steps(curves)}


def read_groups(words: Sequence[str]) -> list[Group]:
    """Read the work directories, and put those together that have one name or one config.

    Args:
        words (Sequence[str]): ``FOLDER`` or ``NAME=FOLDER``.

    Raises:
        UserError: If one is no work directory of a training, has not been validated, or is given twice.
    """
    groups: dict[tuple[bool, str], list[TrainingLog]] = {}
    seen: set[Path] = set()
    for word in words:
        named = '=' in word and not Path(word).exists()
        name, _, folder = word.partition('=') if named else ('', '', word)
        if not Path(folder).is_dir():
            raise UserError(f'{folder!r} is no folder; give work directories, as FOLDER or NAME=FOLDER')
        if Path(folder).resolve() in seen:
            raise UserError(f'{folder!r} is given twice; a training counts once')
        seen.add(Path(folder).resolve())
        log = TrainingLog.read(folder)
        if not log.metrics:
            raise UserError(f'{folder!r} has no validation in its log yet; wait for one, or leave it out')
        groups.setdefault((named, name if named else settings(log.config)), []).append(log)
    unnamed = [logs for (named, _), logs in groups.items() if not named]
    found = iter(names_of(unnamed))
    result = [Group(key if named else next(found), logs) for (named, key), logs in groups.items()]
    for group in result:
        if len({log.unit for log in group.logs}) > 1:
            raise UserError(
                f'the trainings of {group.name!r} are counted partly by epoch, partly by iteration; part them'
            )
        if not shared_steps([log.validations for log in group.logs]):
            raise UserError(f'the trainings of {group.name!r} have no validation at one step; compare them one by one')
    return result


def settings(config: Config) -> str:
    """What trainings of one row have in common."""
    return repr({key: value for key, value in config.to_dict().items() if key not in OF_A_RUN})


def names_of(groups: Sequence[Sequence[TrainingLog]]) -> list[str]:
    """What the paths of each group begin with, below what all have in common; the first path where that is no name."""
    if not groups:
        return []
    folders = [[str(log.folder.resolve()) for log in logs] for logs in groups]
    everything = [folder for group in folders for folder in group]
    root = os.path.commonpath(everything) if len(everything) > 1 else str(Path(everything[0]).parent)
    paths = [[os.path.relpath(folder, root) for folder in group] for group in folders]
    names = [os.path.commonprefix(group).rstrip('/_-. ') for group in paths]
    return [name if name and names.count(name) == 1 else group[0] for name, group in zip(names, paths)]


def choose_metrics(groups: Sequence[Group], wanted: Sequence[str] | None) -> list[str]:
    """The metrics to tell.

    Raises:
        UserError: If a training lacks one that is asked for, or they have none in common.
    """
    logs = [log for group in groups for log in group.logs]
    for log in logs:
        for metric in wanted or ():
            if metric not in log.metrics:
                raise UserError(
                    f'--metrics {metric}: {str(log.folder)!r} has no such metric{nearest(metric, log.metrics)}; it has '
                    + ', '.join(log.metrics)
                )
    if wanted:
        return list(wanted)
    shared = [metric for metric in logs[0].metrics if all(metric in log.metrics for log in logs)]
    if not shared:
        other = next(log for log in logs if not set(log.metrics) & set(logs[0].metrics))
        first, second = (f'{str(log.folder)!r} has {", ".join(log.metrics)}' for log in (logs[0], other))
        raise UserError(f'no metric in common: {first}, and {second}; compare trainings of one task')
    return [metric for metric in MAIN_METRICS if metric in shared] or shared


def image_size(config: Config) -> tuple[int, int] | None:
    """Height and width of the images that a model sees in testing, as far as the config tells."""
    preprocessor = config.model.get('data_preprocessor') or {}
    if size := preprocessor.get('size'):
        return tuple(size)
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    for step in dataset.get('pipeline') or []:
        if type_name(step.get('type')) == 'Resize' and isinstance(step.get('scale'), list | tuple):
            divisor = preprocessor.get('pad_size_divisor', 1)
            width, height = (-(-side // divisor) * divisor for side in step['scale'])
            return min(width, height), max(width, height)
    return None


def count(groups: Sequence[Group], size: tuple[int, int]) -> None:
    """Count parameters and FLOPs of each group's model; which cannot be built here is told, and left out."""
    for group in tqdm(groups, desc='counting FLOPs'):
        try:
            cost = get_flops.count(str(group.logs[0].config_file), size)
        except (UserError, ImportError, KeyError, RuntimeError) as error:
            tqdm.write(f'{group.name}: FLOPs are not counted: {str(error).splitlines()[0]}', file=sys.stderr)
        else:
            group.parameters, group.flops = cost.parameters[''], cost.flops['']


def rows(groups: Sequence[Group], metrics: Sequence[str], size: tuple[int, int] | None) -> Iterator[list[str]]:
    """The cells of the table, header first."""
    of_size = f', {size[0]}×{size[1]}' if size else ''
    yield ['training', 'seeds', 'at', *metrics, 's an iteration', 'GPU MB', 'M parameters', f'GFLOPs{of_size}']
    for group in groups:
        unit, length = group.logs[0].unit, group.logs[0].length
        yield [
            group.name,
            group.seeds,
            f'{unit} {group.last} of {length}',
            *(str(group.at_last(metric)) for metric in metrics),
            str(group.seconds),
            '–' if group.memory is None else f'{group.memory:.0f}',
            '–' if group.parameters is None else f'{group.parameters / 1e6:.2f}',
            '–' if group.flops is None else f'{group.flops / 1e9:.2f}',
        ]


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown, its columns of one width each."""
    header, *body = table
    widths = [max(map(len, column)) for column in zip(*table)]
    for cells in (header, ['-' * width for width in widths], *body):
        yield f'| {" | ".join(cell.ljust(width) for cell, width in zip(cells, widths))} |'


def as_json(groups: Sequence[Group], metrics: Sequence[str], size: tuple[int, int] | None) -> list[dict]:
    """The same, as numbers."""
    return [
        dict(
            name=group.name,
            folders=[str(log.folder) for log in group.logs],
            seeds=[log.seed for log in group.logs],
            at={group.logs[0].unit: group.last, 'of': group.logs[0].length},
            metrics={metric: vars(group.at_last(metric)) for metric in metrics},
            seconds_an_iteration=vars(group.seconds),
            memory_mb=group.memory,
            parameters=group.parameters,
            flops=group.flops,
            image_size=size,
        )
        for group in groups
    ]


def draw(groups: Sequence[Group], metrics: Sequence[str], path: Path) -> None:
    """Draw the loss and each metric over the training, with the 95 % interval as a band where there are several.

    Trainings of which some are counted by epoch and others by iteration are drawn by share of their length.
    """
    from matplotlib.figure import Figure

    units = {log.unit for group in groups for log in group.logs}
    panels = [None, *metrics]
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout='constrained')
    for metric, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0]):
        by_share = metric is not None and len(units) > 1
        for group in groups:
            curve = group.curve(metric)
            steps = [step / group.logs[0].length if by_share else step for step in curve]
            means = [one.mean for one in curve.values()]
            marker = '.' if len(steps) < 20 else ''  # a single validation is a dot
            (line,) = axes.plot(steps, means, label=group.name, marker=marker)
            if len(group.logs) > 1:
                low, high = ([one.mean + sign * one.half for one in curve.values()] for sign in (-1, 1))
                axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        (unit,) = ['iteration'] if metric is None else ['share of the training'] if by_share else units
        axes.set(title=metric or 'loss', xlabel=unit)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.savefig(path, dpi=110)


def parse_plot(text: str) -> Path:
    """A file for the plot."""
    path = parse_output(text)
    if path.suffix not in ('.png', '.svg'):
        raise argparse.ArgumentTypeError(f'{text!r} is neither .png nor .svg')
    return path


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='[NAME=]FOLDER', help='work directory of a training')
    parser.add_argument(
        '--metrics',
        nargs='+',
        metavar='NAME',
        help='as in the log, such as mIoU or coco/bbox_mAP; default: the main ones',
    )
    parser.add_argument(
        '--size',
        type=parse_size,
        metavar='HxW',
        help='image for which FLOPs are counted; default: that of the first training in its tests',
    )
    parser.add_argument('--plot', type=parse_plot, metavar='FILE', help='draw the curves, as .png or .svg')
    parser.add_argument('--json', type=parse_output, metavar='FILE', help='write the figures to this file, too')
    args = parser.parse_args(argv)

    groups = read_groups(args.runs)
    metrics = choose_metrics(groups, args.metrics)
    size = args.size or image_size(groups[0].logs[0].config)
    if size:
        count(groups, size)
    print('\n'.join(aligned(list(rows(groups, metrics, size)))))
    if args.json:
        args.json.write_text(json.dumps(as_json(groups, metrics, size), indent=1) + '\n')
    if args.plot:
        draw(groups, metrics, args.plot)
        print(f'\n{args.plot}')


if __name__ == '__main__':
    main()
