"""Test a detector (mmdet) or a segmentor (mmseg), as the config's ``default_scope`` says."""

import argparse
from collections.abc import Sequence
from copy import deepcopy

from mmvisattn import cli, runs
from mmvisattn.datasets.checks import check_runner
from mmvisattn.errors import UserError

from mmengine.config import Config, ConfigDict


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of mmdet's and mmseg's own ``test.py``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        help='where predictions go, for evaluation later: mmdet writes one file (.pkl, masks as RLE), mmseg a folder '
        'of PNGs of labels',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir',
        help='folder for pictures of prediction beside truth; a relative one lies below WORK_DIR/TIMESTAMP in mmdet, '
        'below the current folder in mmseg (in its vis_data/vis_image)',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows each; default: 2')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    cli.add_data_arguments(parser)
    cli.add_runner_arguments(parser)
    return parser.parse_args(argv)


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Turn the visualization hook on; it draws every picture unless the config sets its ``interval``."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(
            '--show and --show-dir need `default_hooks.visualization` in the config, a DetVisualizationHook or '
            'SegVisualizationHook'
        )
    hook.draw = True
    hook.setdefault('interval', 1)
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir and cfg.default_scope == 'mmdet':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    """Wrap the model and exchange the pipeline for test-time augmentation."""
    if cfg.default_scope == 'mmdet':
        model = cfg.model
        if 'mask_head' in model or 'mask_head' in model.get('roi_head', {}):
            raise UserError(
                "--tta: mmdet's DetTTAModel merges boxes and not masks; test models with masks without --tta"
            )
        cfg.setdefault('tta_model', default_tta_model())
        cfg.setdefault('tta_pipeline', default_tta_pipeline(cfg.test_dataloader.dataset))
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise UserError(f'--tta needs `{key}` in the config')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def default_tta_model() -> dict:
    """How mmdet merges detections where the config does not say."""
    tta_cfg = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    return dict(type='DetTTAModel', tta_cfg=tta_cfg)


def default_tta_pipeline(dataset: ConfigDict) -> list[dict]:
    """The test pipeline with a flip, as mmdet does it where the config does not say."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    flip = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    pack = [dict(type='PackDetInputs', meta_keys=meta_keys)]
    return [*deepcopy(dataset.pipeline[:-1]), dict(type='TestTimeAug', transforms=[flip, pack])]


def save_predictions(cfg: Config, out: str) -> None:
    """Have the evaluator write the predictions: mmdet into one file, mmseg as PNGs into a folder."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if cfg.default_scope == 'mmseg':
        for evaluator in evaluators:
            evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {out}: mmdet writes one file; name it .pkl or .pickle')
    cfg.test_evaluator = [*evaluators, dict(type='DumpDetResults', out_file_path=out)]


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Test."""
    args = parse_args(argv)
    cfg = cli.prepare(args)
    cli.check_file(args.checkpoint, 'checkpoint')
    cfg.load_from = args.checkpoint
    cfg.resume = False
    with runs.no_half_written(cfg.work_dir):
        cli.use_data(cfg, args, args.checkpoint)
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        use_tta(cfg)
    if args.out:
        save_predictions(cfg, args.out)
    cli.check_data(cfg, 'test_dataloader')
    with runs.no_half_written(cfg.work_dir, args.show_dir, args.out):
        runner = runs.build_runner(cfg)
        check_runner(runner, 'test_dataloader')
        runner.test()


if __name__ == '__main__':
    main()
