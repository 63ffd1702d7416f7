"""Train a detector (mmdet) or a segmentor (mmseg), as the config's ``default_scope`` says."""

import argparse
from collections.abc import Sequence

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.registry import type_name

from mmengine.config import Config
from mmengine.device import get_device


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
    cli.make_resumable(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = cli.latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if cfg.load_from is None:
            print(f'no checkpoint in {cfg.work_dir!r} yet: training begins anew', flush=True)
            cfg.resume = False
    if cfg.get('load_from'):
        cli.check_file(cfg.load_from, 'checkpoint')
    cli.check_data(cfg, 'train_dataloader', *(['val_dataloader'] if cfg.get('val_cfg') else []))
    with cli.no_half_written(cfg.work_dir), cli.sole_run(cfg.work_dir):
        cli.build_runner(cfg).train()


if __name__ == '__main__':
    main()
