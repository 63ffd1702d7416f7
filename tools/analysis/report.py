"""Write one page of HTML about a model and some pictures: facts, results, predictions, what it looks at, its training.

The page is a single file that loads nothing from elsewhere. On it:

- parameters and FLOPs by part, and with ``--speed`` the time of a prediction;
- predictions beside truth, where the annotations of the config's test set are there, with results by class; the
  pictures on which the model is worst come first;
- maps of what the network looks at, with picture, layer and head to choose: those of ``visualize.py``;
- the curves of the training, from its work directory.

It works on models of a config, stock ones too, and on backbones by name, trained or not.

Examples:
    python tools/analysis/report.py CONFIG --checkpoint work_dirs/NAME/epoch_12.pth --measure 500 --num-images 10
    python tools/analysis/report.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py street.jpg --checkpoint FILE --speed
    python tools/analysis/report.py timm:resnet50 street.jpg --size 224x224 --out resnet50.html
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.visualization.recorder import available_kinds
from mmvisattn.visualization.token_fields import sequence_backbones

import cv2
import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.visualization import Visualizer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools import predict
from tools.analysis import measurements
from tools.analysis.get_flops import CostCounter
from tools.analysis.measure import describe_machine, parse_count, peak_memory, times_in_turn
from tools.analysis.report_page.curves import Curve, read_curves
from tools.analysis.report_page.maps import WHAT, Viewer, photograph
from tools.analysis.report_page.page import Page, Picture, render, table_of
from tools.analysis.report_page.scores import Score, Scorer, Table, TestSet, describe
from tools.analysis.subjects import Subject, add_arguments, check_images

DEPTH = 2  # levels of modules in the table of costs
LEAST_SHARE = 0.001  # of parameters or FLOPs, of the modules in it
ROUNDS = 9  # of a measurement of time


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument('--checkpoint', metavar='FILE', help='weights; default: random ones')
    parser.add_argument(
        '--measure',
        type=parse_count,
        metavar='N',
        help='pictures of the test set to measure, of which the worst are shown; default: those that are shown',
    )
    parser.add_argument('--work-dir', metavar='DIR', help="of the training, for its curves; default: the checkpoint's")
    parser.add_argument(
        '--show', nargs='+', choices=WHAT, help="maps to show; default: all that the network has but 'field'"
    )
    parser.add_argument('--speed', action='store_true', help='time the first picture too, best on an idle machine')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='draw detections of at least this score, 0 to 1; default: %(default)s',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/report.html'), metavar='FILE', help='default: %(default)s'
    )
    return parser.parse_args(argv)


class Shown(NamedTuple):
    """A picture, and what was found about it.

    Args:
        path (str): The file.
        truth (Any): The toolbox's data sample with the annotations, or None.
        score (Score | None): How prediction and truth agree.
    """

    path: str
    truth: Any
    score: Score | None


def kinds_of(subject: Subject, wanted: Sequence[str] | None) -> list[str]:
    """The maps to show.

    Raises:
        UserError: If the network lacks one that is wanted.
    """
    has = [*available_kinds(subject.model), *(['over-focus'] if any(sequence_backbones(subject.model)) else [])]
    for kind in wanted or ():
        if kind not in (*has, 'field'):
            raise UserError(f'--show {kind}: this network has {", ".join([*has, "field"])}')
    return list(wanted or has)


def find_test_set(subject: Subject, args: argparse.Namespace) -> tuple[TestSet | None, str]:
    """The test set, or None and why there is no truth.

    Raises:
        UserError: If there are no pictures without it.
    """
    try:
        return TestSet(subject), ''
    except UserError as error:
        if not args.images:
            raise
        return None, '' if subject.cfg is None else f'No truth: {error}'


def score_pictures(subject: Subject, test_set: TestSet | None, scorer: Scorer | None, paths: list[str]) -> list[Shown]:
    """Predict all pictures and compare them with the truth; the worst first, those without truth last."""
    if scorer is None or test_set is None:
        return [Shown(path, None, None) for path in paths]
    scored = []
    for path in tqdm(paths, desc='measuring', disable=len(paths) < 2):
        truth = test_set.truth(path)
        scored.append(Shown(path, truth, scorer.add(subject.show(path), truth) if truth is not None else None))
    return sorted(scored, key=lambda one: one.score.value if one.score else 2)


def draw(
    subject: Subject, visualizer: Visualizer, one: Shown, predicted: Any, score_thr: float
) -> list[tuple[str, str, str]]:
    """Truth and prediction as the toolbox's visualizer draws them: title, picture, and what is in it."""
    read = predict.read(subject.pipeline.transforms[0], Path(one.path))
    picture = cv2.cvtColor(predict.to_bgr(read), cv2.COLOR_BGR2RGB)
    classes = subject.model.dataset_meta['classes']
    options = dict(pred_score_thr=score_thr) if subject.cfg.default_scope == 'mmdet' else {}
    drawn = []
    for title, part, sample in (('Truth', 'gt', one.truth), ('Prediction', 'pred', predicted)):
        if sample is not None:
            told = describe(sample, part, classes, score_thr)
            # mmseg's visualizer indexes arrays by it, and numpy takes a tensor of one element for a number.
            shown = sample.numpy() if f'{part}_sem_seg' in sample else sample
            choice = dict(draw_gt=part == 'gt', draw_pred=part == 'pred')
            visualizer.add_datasample(title, picture, shown, **choice, **options)
            image = cv2.cvtColor(visualizer.get_image(), cv2.COLOR_RGB2BGR)
            drawn.append((title, photograph(image), told))
    return drawn


def cost_table(subject: Subject, image: str) -> tuple[Table, CostCounter]:
    """Parameters and FLOPs of the network for a picture."""
    with CostCounter(subject.model) as counter:
        subject.show(image)
    all_parameters, all_flops = counter.parameters[''], max(counter.flops[''], 1)
    rows = []
    for name, number in counter.parameters.items():
        flops = counter.flops[name]
        if name.count('.') + bool(name) <= DEPTH and max(number / all_parameters, flops / all_flops) >= LEAST_SHARE:
            cells = (f'{number / 1e6:.3f}', f'{number / all_parameters:.1%}')
            rows.append((name or 'all', *cells, f'{flops / 1e9:.3f}', f'{flops / all_flops:.1%}'))
    note = (
        'Two FLOPs for a multiply-add; norms, activation functions, softmax and interpolation do not count. Counted '
        f'while {Path(image).name} was predicted. Parts of less than {LEAST_SHARE:.1%} of both are left out.'
    )
    columns = ['part', 'M parameters', 'share', 'GFLOPs', 'share of them']
    return table_of('Cost by part, two levels deep', columns, rows, note), counter


def speed_table(subject: Subject, image: str, size: Sequence[int]) -> Table:
    """Time and memory of the network for a picture."""
    device = torch.device(subject.device)
    inputs = torch.randn(1, 3, *size, device=device)
    steps = {'backbone': lambda: subject.backbone(inputs)}
    if subject.cfg is not None:
        batch = pseudo_collate([subject.pipeline(dict(img_path=image, img_id=0))])
        steps['prediction, with pre- and post-processing'] = lambda: subject.model.test_step(batch)
    with torch.no_grad():
        memory = {name: peak_memory(step, device) for name, step in steps.items()}
        times = times_in_turn(steps, ROUNDS, device)
    rows = [
        (name, measurements.milliseconds(seconds), f'{1 / statistics.median(seconds):.2f}', f'{memory[name]:.0f}')
        for name, seconds in times.items()
    ]
    note = f'One picture, the file already read; medians of {ROUNDS} rounds in turn, with minimum and maximum.'
    return table_of('Speed', ['step', 'ms (min–max)', 'pictures/s', 'peak MiB'], rows, note)


def training_curves(args: argparse.Namespace) -> tuple[list[Curve], str]:
    """The curves, and where they come from.

    Raises:
        UserError: If ``--work-dir`` is given and has no logs.
    """
    work_dir = args.work_dir or (args.checkpoint and Path(args.checkpoint).parent)
    if not work_dir:
        return [], 'No curves: neither a checkpoint nor --work-dir was given.'
    try:
        return read_curves(Path(work_dir)), f'From the logs in {work_dir}.'
    except UserError as error:
        if args.work_dir:
            raise
        return [], f'No curves: {error}.'


def summary_table(subject: Subject, counter: CostCounter, size: Sequence[int], first: str) -> Table:
    """The facts that come first."""
    machine = describe_machine(torch.device(subject.device))
    versions = ', '.join(f'{name} {machine[name]}' for name in ('torch', 'timm', 'mmvisattn', 'python'))
    classes = getattr(subject.model, 'dataset_meta', {}).get('classes', ())
    facts = [
        ('weights', subject.checkpoint or 'random, of seed 0'),
        ('architecture', type(subject.model).__name__),
        *([('backbone', type(subject.backbone).__name__)] if subject.backbone is not subject.model else []),
        *([('classes', str(len(classes)))] if classes else []),
        ('parameters', f'{counter.parameters[""] / 1e6:.3f} million'),
        ('FLOPs of a prediction', f'{counter.flops[""] / 1e9:.3f} billion, of {first}'),
        ('what the backbone is given', f'{size[0]}×{size[1]} pixels, height and width'),
        ('machine', f'{machine["device"]}, {machine["threads"]} threads'),
        ('versions', versions),
        ('date', machine['date']),
    ]
    return table_of(subject.name, ['fact', 'value'], facts)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, and print its path."""
    args = parse_args(argv)
    check_images(args.images)
    if not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr {args.score_thr}: give a score from 0 to 1')
    if args.images and args.measure:
        raise UserError('--measure is of the test set; leave the pictures out, or --measure')
    if args.out.suffix != '.html':
        raise UserError(f'--out {str(args.out)!r}: give a file that ends in .html')
    curves, curves_from = training_curves(args)
    subject = Subject(args.network, args.checkpoint, args.device or get_device(), args.cfg_options, args.size)
    kinds = kinds_of(subject, args.show)
    test_set, why = find_test_set(subject, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    paths = args.images or test_set.paths(max(args.measure or 0, args.count))
    scorer = None
    if subject.cfg is not None:
        scorer = Scorer(subject.model.dataset_meta['classes'], args.score_thr, ignore_index(subject))
    scored = score_pictures(subject, test_set, scorer, paths)
    shown = scored if args.images else scored[: args.count]
    costs, counter = cost_table(subject, shown[0].path)

    views, pictures = [], []
    visualizer = subject.cfg and predict.build_visualizer(subject.cfg, subject.model)
    with Viewer(subject, kinds) as viewer:
        for one in tqdm(shown, desc='drawing', disable=len(shown) < 2):
            name, told = Path(one.path).name, one.score.told if one.score else ''
            sample, new = viewer.show(one.path, name)
            if sample is not None:
                drawn = draw(subject, visualizer, one, sample, args.score_thr)
                pictures.append(Picture(name, told, len(views), drawn))
            views += new
    size = viewer.size

    measured = any(one.score for one in scored)
    order = why or 'Without truth, in the order given.'
    if measured:
        order = f'The {len(shown)} on which the model is worst, of {len(scored)} that were measured; the worst first.'
    page = Page(
        title=Path(args.network).stem if subject.cfg is not None else args.network,
        summary=summary_table(subject, counter, size, Path(shown[0].path).name),
        results=scorer.tables() if measured else [],
        pictures=pictures,
        order=order,
        views=views,
        curves=curves,
        curves_from=curves_from,
        costs=costs,
        origin=shlex.join(['python', 'tools/analysis/report.py', *(sys.argv[1:] if argv is None else argv)]),
        speed=[speed_table(subject, shown[0].path, size)] if args.speed else [],
    )
    args.out.write_text(render(page), encoding='utf-8')
    print(args.out)


def ignore_index(subject: Subject) -> int:
    """The label of the pixels that the config's metric leaves out."""
    evaluator = subject.cfg.get('test_evaluator') or {}
    return (evaluator[0] if isinstance(evaluator, list) else evaluator).get('ignore_index', 255)


if __name__ == '__main__':
    main()
