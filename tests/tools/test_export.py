"""tools/export.py: what it writes, checks and refuses."""

import inspect
import re

from mmvisattn.models.export import DEFERRED

import pytest
import torch

from .utils import run_tool

pytest.importorskip('onnxruntime')
OPEN_SIZES = DEFERRED in inspect.signature(torch.export.export).parameters
SIZE = ('--size', '128x192', '--min-size', 64)


@pytest.fixture
def told(capsys):
    """Run the tool where it must refuse in one line, and return it."""

    def run(*args):
        with pytest.raises(SystemExit) as exit_info:
            run_tool('export', *args)
        assert exit_info.value.code == 2
        line = capsys.readouterr().err.partition('error: ')[2].strip()
        assert line and '\n' not in line
        return line

    return run


def test_whole_segmentor_at_any_size(seg, tmp_path, told, capsys):
    import onnx

    out = tmp_path / 'seg.onnx'
    words = [seg.config, out, '--part', 'model', '--checkpoint', seg.checkpoint, *SIZE]
    if not OPEN_SIZES:
        assert '--fixed-size' in told(*words)
        words += ['--fixed-size']
    run_tool('export', *words)
    printed = capsys.readouterr().out
    assert len(re.findall(r'^\d×3×.*: differs by \S+e-0[5-9]', printed, re.M)) == (3 if OPEN_SIZES else 2)
    model = onnx.load(out)
    assert [output.name for output in model.graph.output] == ['scores', 'classes']
    assert {entry.key for entry in model.metadata_props} >= {'mean', 'std', 'channels', 'network'}


def test_detector_up_to_its_head(det, tmp_path, capsys):
    out = tmp_path / 'det.pt2'
    words = [det.config, out, '--part', 'model', '--checkpoint', det.checkpoint, '--size', '256x320']
    run_tool('export', *words, *([] if OPEN_SIZES else ['--fixed-size']))
    printed = capsys.readouterr().out
    assert 'head0_level0, head0_level1' in printed and 'head1_level4' in printed
    assert len(re.findall(r'^\d×3×.*: differs by \S+e[+-]0', printed, re.M)) == (3 if OPEN_SIZES else 2)


def test_weights_are_those_of_the_checkpoint(seg, tmp_path):
    import numpy as np
    import onnxruntime

    images, outs = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32), []
    for name, checkpoint in (('random', []), ('trained', ['--checkpoint', seg.checkpoint])):
        path = tmp_path / f'{name}.onnx'
        run_tool('export', seg.config, path, *checkpoint, '--size', '64x64', '--fixed-size', '--fixed-batch', 1)
        outs.append(onnxruntime.InferenceSession(path).run(None, {'images': images})[0])
    assert not np.allclose(*outs, atol=1e-3)


def test_refusals(seg_config, told, tmp_path):
    assert 'name the file .onnx or .pt2' in told(seg_config, tmp_path / 'model.pth')
    assert 'there is no folder' in told(seg_config, tmp_path / 'nowhere/model.onnx')
    assert '--fixed-batch 0' in told(seg_config, tmp_path / 'model.onnx', '--fixed-batch', 0)
    assert 'multiples of 32' in told(seg_config, tmp_path / 'model.onnx', '--size', '100x100', '--min-size', 64)
    assert 'does not exist' in told(seg_config, tmp_path / 'model.onnx', '--checkpoint', 'nothing.pth')


def test_configs_of_a_toolbox_are_found(told, tmp_path):
    config = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    assert 'sides from 64 to 4096' in told(config, tmp_path / 'model.onnx', '--size', '32x32', '--min-size', 64)
