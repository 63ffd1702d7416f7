"""Train a detector (mmdet) or a segmentor (mmseg), as the config's ``default_scope`` says."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli, runs
from mmvisattn.checkpoint.loading import weights_of
from mmvisattn.datasets.checks import check_runner
from mmvisattn.errors import UserError
from mmvisattn.registry import type_name

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner.checkpoint import CheckpointLoader


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of mmdet's and mmseg's own ``train.py``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the ratio of the actual batch size to `auto_scale_lr.base_batch_size`',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or from the latest one in the work directory where none is named',
    )
    parser.add_argument(
        '--load-from',
        metavar='CHECKPOINT',
        help='start from these weights, of a whole model or of a backbone alone; the log says what they fill',
    )
    cli.add_data_arguments(parser)
    cli.add_runner_arguments(parser)
    return parser.parse_args(argv)


def use_amp(cfg: Config) -> None:
    """Turn on mixed precision with a dynamic loss scale."""
    wrapper = cfg.optim_wrapper
    name = type_name(wrapper.get('type', 'OptimWrapper'))
    if name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f"--amp takes the place of `optim_wrapper.type='OptimWrapper'`, and this config has {name!r}")
    if name != 'AmpOptimWrapper':
        wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')


def use_bfloat16(cfg: Config) -> None:
    """On the CPU, mixed precision in bfloat16, which needs no loss scale."""
    wrapper = cfg.optim_wrapper
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
    wrapper['type'] = 'mmvisattn.CpuAmpOptimWrapper'
    print('no GPU: mixed precision is in bfloat16', flush=True)


def use_auto_scale_lr(cfg: Config) -> None:
    """Turn on the scaling of the learning rate by the batch size."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError(
            '--auto-scale-lr needs the batch size that the learning rate is for; write '
            '`auto_scale_lr = dict(base_batch_size=16)` with that size into the config'
        )
    cfg.auto_scale_lr.enable = True


def use_weights(cfg: Config, checkpoint: str) -> None:
    """Start from the weights of a whole model, or of a backbone alone; the reports of loading say which fit.

    Args:
        cfg (Config): The config, changed in place.
        checkpoint (str): The file.
    """
    cli.check_file(checkpoint, 'checkpoint')
    names = weights_of(CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'))
    backbone = cfg.model.backbone
    if any(name.startswith('backbone.') for name in names):
        cfg.load_from = checkpoint
        backbone.pop('init_cfg', None)
        print(f'--load-from: {checkpoint} is of a whole model, `load_from`; `model.backbone.init_cfg` is not read')
    else:
        cfg.load_from = None
        backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
        print(f'--load-from: {checkpoint} is of a backbone alone, `model.backbone.init_cfg`')
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train."""
    args = parse_args(argv)
    cfg = cli.prepare(args)
    if args.amp:
        use_amp(cfg)
    if type_name(cfg.optim_wrapper.get('type')) == 'AmpOptimWrapper':
        if get_device() == 'cpu':
            use_bfloat16(cfg)
        elif get_device() == 'mps':
            raise UserError(
                'mixed precision (AmpOptimWrapper) needs a CUDA GPU or the CPU, and this is MPS; leave out --amp, or '
                'take a config without it'
            )
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    runs.make_resumable(cfg)
    if args.resume:
        strategy = cfg.get('strategy', {}).get('type')
        if type_name(strategy) == 'FSDPStrategy' and 'mmvisattn.' not in str(strategy):
            raise UserError(
                "--resume does not go with mmengine's FSDPStrategy, which gives torch the optimizer in an order of "
                'arguments that torch no longer has; set `strategy.type=mmvisattn.FSDPStrategy`, now and before'
            )
        cfg.resume = True
        cfg.load_from = runs.latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if cfg.load_from is None:
            print(f'no checkpoint in {cfg.work_dir!r} yet: training begins anew', flush=True)
            cfg.resume = False
    if args.load_from:
        if args.resume:
            raise UserError('--resume goes on with a training and --load-from begins one; give one of them')
        use_weights(cfg, args.load_from)
    if cfg.get('load_from'):
        cli.check_file(cfg.load_from, 'checkpoint')
    loaders = ['train_dataloader', *(['val_dataloader'] if cfg.get('val_cfg') else [])]
    with runs.no_half_written(cfg.work_dir), runs.sole_run(cfg.work_dir):
        cli.use_data(cfg, args)
        cli.check_data(cfg, *loaders)
        runner = runs.build_runner(cfg)
        check_runner(runner, *loaders)
        if args.data:
            runner.logger.info(f'the resolved config: {Path(cfg.work_dir, Path(cfg.filename).name)}')
        runner.train()


if __name__ == '__main__':
    main()
