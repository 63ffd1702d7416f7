"""Where the time of a training step goes: data, backbone, neck, heads and optimizer, forward and backward.

The steps are those of a training: images of the config's own set, its pipeline, model, optimizer and mixed precision,
weights at random, one process that loads its own data. What is computed for a part in the backward ends when the
gradients of what came into it are there. The table has medians of the rounds.

Example:
    python tools/data/make_mini.py data/mini_large --train 8 --val 4 --size 1333 800 --objects 4 12
    python tools/analysis/training_step.py configs/fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco.py --data data/mini_large/coco
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmvisattn import cli
from mmvisattn.registry import type_name

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.analysis import networks
from tools.analysis.measure import CLOCKS, parse_count
from tools.train import use_bfloat16

WARM_UP_ROUNDS = 1
HEAD_CALLS = ('loss', 'loss_and_predict')


class Parts:
    """Takes the time of each part of a model.

    Args:
        model (nn.Module): A detector or segmentor; its children are the parts.
        now (Callable[[], float]): The clock, in seconds.
    """

    def __init__(self, model: nn.Module, now: Callable[[], float]) -> None:
        self.now = now
        self.forward: dict[str, float] = {}
        self.arrived: dict[str, float] = {}  # when the last gradient of what came into a part was there
        for name, part in model.named_children():
            if isinstance(part, nn.ModuleList):  # auxiliary heads
                for number, each in part.named_children():
                    self._time(f'{name}.{number}', each)
            elif name != 'data_preprocessor':
                self._time(name, part)

    def _time(self, name: str, part: nn.Module) -> None:
        calls = [call for call in HEAD_CALLS if hasattr(part, call)]
        for call in calls or ['forward']:
            setattr(part, call, self._timed(name, getattr(part, call)))

    def _timed(self, name: str, call: Callable) -> Callable:
        @functools.wraps(call)
        def timed(*args, **kwargs) -> object:
            args = self._watch(name, args)
            kwargs = {key: self._watch(name, value) for key, value in kwargs.items()}
            start = self.now()
            outs = call(*args, **kwargs)
            self.forward[name] = self.forward.get(name, 0.0) + self.now() - start
            return outs

        return timed

    def _watch(self, name: str, value: Any) -> Any:
        """The same tensors, of which it is known when their gradients are there."""
        if type(value) in (list, tuple):
            return type(value)(self._watch(name, each) for each in value)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        value = value.view_as(value)  # its gradient is that of this part alone

        def arrive(grad: Tensor) -> None:
            self.arrived[name] = self.now()

        value.register_hook(arrive)
        return value

    def backward(self, start: float, end: float) -> dict[str, float]:
        """Seconds of each part in the backward from ``start`` to ``end``; parts come one after another."""
        last = next(iter(self.forward))  # the backbone: nobody asks for the gradient of images
        times = {}
        for name, time in sorted(self.arrived.items(), key=lambda item: item[1]):
            times[name], start = time - start, time
        return {**times, last: end - start}


def steps(cfg: Config, rounds: int, device: torch.device, clock: str) -> Iterator[dict[str, tuple[float, float]]]:
    """Seconds of each part, forward and backward, step by step."""

    def now() -> float:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return CLOCKS[clock]()

    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    networks.initialise(model)
    model.to(device).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    parts = Parts(model, now)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for i in range(WARM_UP_ROUNDS + rounds):
        parts.forward, parts.arrived = {}, {}
        begin = now()
        batch = model.data_preprocessor(next(batches), training=True)
        loaded = now()
        with optim_wrapper.optim_context(model):
            losses = model(**batch, mode='loss')
            loss, _ = model.parse_losses(losses)
        computed = now()
        optim_wrapper.backward(loss)
        returned = now()
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        end = now()
        back = parts.backward(computed, returned)
        times = {'data': (loaded - begin, 0.0)}
        times |= {name: (seconds, back.get(name, 0.0)) for name, seconds in parts.forward.items()}
        times['other'] = (computed - loaded - sum(parts.forward.values()), 0.0)
        times['optimizer'] = (end - returned, 0.0)
        if i >= WARM_UP_ROUNDS:
            yield times


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a detector or segmentor')
    parser.add_argument('--batch', type=parse_count, default=1, help='images a step; default: 1')
    cli.add_cfg_options(parser)
    cli.add_data_arguments(parser)
    reports.add_arguments(parser, rounds=5)
    reports.add_clock(parser)
    return parser.parse_args(argv)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it if asked for."""
    args = parse_args(argv)
    torch.manual_seed(0)
    cfg = cli.load_config(args.config, args.cfg_options)
    with tempfile.TemporaryDirectory() as cfg.work_dir:  # what --data writes goes there
        cli.use_data(cfg, args)
        cli.check_data(cfg, 'train_dataloader')
        if args.device.type == 'cpu' and type_name(cfg.optim_wrapper.get('type')) == 'AmpOptimWrapper':
            use_bfloat16(cfg)
        cfg.train_dataloader.update(batch_size=args.batch, num_workers=0, persistent_workers=False)
        measured = list(steps(cfg, args.rounds, args.device, args.clock))
    report = reports.start(__file__, argv, args)
    print('\n'.join(reports.describe(report)))
    forward, backward = ({name: [times[name][i] for times in measured] for name in measured[0]} for i in range(2))
    whole = statistics.median(sum(map(sum, times.values())) for times in measured)
    rows = []
    for name in measured[0]:
        both = statistics.median(sum(pair) for pair in zip(forward[name], backward[name]))
        back = reports.milliseconds(backward[name]) if any(backward[name]) else '–'
        rows.append([name, reports.milliseconds(forward[name]), back, f'{both / whole:.0%}'])
    title = f'{args.config}, batch {args.batch}: {whole * 1e3:.0f} ms'
    reports.add_table(report, title, ['part', 'forward, ms (min–max)', 'backward, ms (min–max)', 'share'], rows)
    reports.write(report, args.json)


if __name__ == '__main__':
    main()
