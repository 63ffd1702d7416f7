"""Configs of mmengine's other style, with classes in place of names, through the tools."""

from pathlib import Path

import pytest
from mmengine.config import Config

from .utils import load_tool, read_log, run_tool

# What stands for a name in the resolved config, and where it comes from.
CLASSES = {
    'det': {
        'FCViT': ('mmvisattn.FCViT', 'mmvisattn.models'),
        'CheckpointReportHook': ('mmvisattn.CheckpointReportHook', 'mmvisattn.engine'),
        'OptimWrapper': ('OptimWrapper', 'mmengine.optim'),
        'RetinaNet': ('RetinaNet', 'mmdet.models'),
        'CocoDataset': ('CocoDataset', 'mmdet.datasets'),
        'LoadAnnotations': ('LoadAnnotations', 'mmdet.datasets.transforms'),
    },
    'seg': {
        'FCViT': ('mmvisattn.FCViT', 'mmvisattn.models'),
        'CheckpointReportHook': ('mmvisattn.CheckpointReportHook', 'mmvisattn.engine'),
        'OptimWrapper': ('OptimWrapper', 'mmengine.optim'),
        'EncoderDecoder': ('EncoderDecoder', 'mmseg.models'),
        'ADE20KDataset': ('ADE20KDataset', 'mmseg.datasets'),
        'LoadAnnotations': ('LoadAnnotations', 'mmseg.datasets.transforms'),
    },
}


def write_lazy(config: Path, classes: dict[str, tuple[str, str]], path: Path) -> Path:
    """A resolved config written with classes."""
    text = Config.fromfile(config).pretty_text
    imports = []
    for name, (written, module) in classes.items():
        assert f"type='{written}'" in text
        text = text.replace(f"type='{written}'", f'type={name}')
        imports.append(f'from {module} import {name}\n')
    path.write_text(''.join(imports) + text)
    return path


@pytest.mark.parametrize('toolbox', CLASSES)
def test_train_test_dump_and_train_again(toolbox, request, tmp_path):
    trained = request.getfixturevalue(toolbox)
    lazy = write_lazy(trained.config, CLASSES[toolbox], tmp_path / 'lazy.py')
    short = ['--cfg-options', f'train_cfg.max_{"epochs" if toolbox == "det" else "iters"}=1']
    run_tool('train', lazy, '--work-dir', tmp_path / 'first', *short)
    (checkpoint,) = (tmp_path / 'first').glob('*_1.pth')
    run_tool('test', lazy, checkpoint, '--work-dir', tmp_path / 'test', '--show-dir', tmp_path / 'pictures')

    dumped = tmp_path / 'first/lazy.py'
    run_tool('train', dumped, '--work-dir', tmp_path / 'second')
    first, second = (read_log(tmp_path / name)[0]['loss'] for name in ('first', 'second'))
    assert first > 0 and second > 0
    run_tool('test', dumped, checkpoint, '--work-dir', tmp_path / 'test_dumped')


@pytest.mark.parametrize('toolbox', CLASSES)
def test_options_of_classes_are_checked(toolbox, request, tmp_path, capsys):
    lazy = write_lazy(request.getfixturevalue(toolbox).config, CLASSES[toolbox], tmp_path / 'lazy.py')
    lazy.write_text(lazy.read_text().replace('type=FCViT', 'depth=3, type=FCViT'))
    with pytest.raises(SystemExit) as ended:
        run_tool('train', lazy, '--work-dir', tmp_path)
    assert ended.value.code == 2
    assert 'FCViT has no option' in capsys.readouterr().err


@pytest.mark.parametrize('toolbox', CLASSES)
def test_amp_takes_a_class(toolbox, request, tmp_path):
    lazy = write_lazy(request.getfixturevalue(toolbox).config, CLASSES[toolbox], tmp_path / 'lazy.py')
    tool = load_tool('train')
    cfg = tool.cli.load_config(str(lazy))
    tool.use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'
