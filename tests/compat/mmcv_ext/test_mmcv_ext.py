import importlib
import subprocess
import sys

from mmvisattn.compat import mmcv_ext

import mmcv.ops
import pytest

SUPPLIED = {
    'nms', 'softnms', 'nms_match',
    'roi_align_forward', 'roi_align_backward', 'roi_pool_forward', 'roi_pool_backward',
    'deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters',
    'modulated_deform_conv_forward', 'modulated_deform_conv_backward',
    'ms_deform_attn_forward', 'ms_deform_attn_backward',
    'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward',
    'softmax_focal_loss_forward', 'softmax_focal_loss_backward',
    'get_compiler_version', 'get_compiling_cuda_version',
}  # fmt: skip


def test_every_name_that_mmcv_asks_for_exists(supplied):
    names = mmcv_ext.asked_for()
    assert SUPPLIED | {'psamask_forward', 'roi_align_rotated_forward', 'indice_conv_forward'} <= names
    for name in names:
        assert callable(getattr(supplied, name))


def test_supplied():
    assert set(mmcv_ext.supplied()) == SUPPLIED


def test_the_rest_says_what_to_do(supplied):
    for name in sorted(mmcv_ext.asked_for() - SUPPLIED):
        with pytest.raises(NotImplementedError, match=rf'mmcv\._ext\.{name} .*compiled mmcv.*mmcv==2\.1\.0'):
            getattr(supplied, name)(1, key=2)


def test_missing_operator_through_mmcv():
    import torch

    with pytest.raises(NotImplementedError, match='psamask_forward'):
        mmcv.ops.PSAMask('collect', (3, 3))(torch.randn(1, 9, 3, 3))


def test_compiler_version_is_a_text():
    assert mmcv.ops.get_compiler_version() == mmcv.ops.get_compiling_cuda_version() == 'not compiled'


def test_private_names_are_not_invented(supplied):
    with pytest.raises(AttributeError, match='__path__'):
        supplied.__path__  # noqa: B018


@pytest.mark.parametrize('package', ['mmdet.models', 'mmdet.apis', 'mmseg.models', 'mmseg.apis'])
def test_toolboxes_import(package):
    importlib.import_module(package)


def test_compiled_mmcv_is_used_as_it_is(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').touch()
    (tmp_path / 'mmcv' / '_ext.py').write_text('nms = "compiled"\n')
    code = (
        'import mmvisattn, mmcv._ext\n'
        'from mmvisattn import compat\n'
        'assert mmcv._ext.nms == "compiled" and not hasattr(mmcv._ext, "softnms")\n'
        'states = {record.name: record.state for record in compat.report()}\n'
        'assert states["ext"] == "not needed" and states["mmcv.ops"] == "compiled", states\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=with_path(tmp_path))


def test_no_mmcv_at_all(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(
        'from importlib.machinery import PathFinder\n'
        'find = PathFinder.find_spec\n'
        'def find_spec(name, path=None, target=None):\n'
        '    return None if name == "mmcv" else find(name, path, target)\n'
        'PathFinder.find_spec = find_spec\n'
    )
    code = (
        'import mmvisattn\n'
        'from mmvisattn import compat\n'
        'states = {record.name: record.state for record in compat.report()}\n'
        'assert states["ext"] == "not needed" and states["mmcv.ops"] == "none", states\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=with_path(tmp_path))


def with_path(folder):
    import os
    from pathlib import Path

    root = Path(__file__).parents[3]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), str(root)])}
