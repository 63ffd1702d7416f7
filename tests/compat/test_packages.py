import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from mmvisattn.compat import packages

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', ['mmdet', 'mmsegmentation', 'mmseg', 'mmengine', 'mmcv'])
def test_installed(name):
    assert packages.is_installed(name)


@pytest.mark.parametrize('name', ['no-such-package', 'nosuchpackage'])
def test_not_installed(name):
    assert not packages.is_installed(name)
    with pytest.raises(PackageNotFoundError, match=name):
        packages.get_installed_path(name)
    with pytest.raises(PackageNotFoundError, match=name):
        packages.package2module(name)


@pytest.mark.parametrize(('name', 'module'), [('mmdet', 'mmdet'), ('mmsegmentation', 'mmseg'), ('mmseg', 'mmseg')])
def test_path(name, module):
    path = Path(packages.get_installed_path(name))
    assert path.name == module and (path / '.mim' / 'configs').is_dir()


def test_module_name():
    assert packages.package2module('mmsegmentation') == 'mmseg'
    assert packages.package2module('opencv-python') == 'cv2'
    assert packages.package2module('PyYAML') in ('yaml', '_yaml')


def distribution(folder, name, files, top_level=None):
    info = folder / f'{name.replace("-", "_")}-1.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in files))
    if top_level:
        (info / 'top_level.txt').write_text(top_level)


def test_wheel_without_top_level(tmp_path, monkeypatch):
    (tmp_path / 'oddly_named').mkdir()
    (tmp_path / 'oddly_named' / '__init__.py').touch()
    distribution(tmp_path, 'plain-wheel', ['plain_wheel-1.0.dist-info/METADATA', 'oddly_named/__init__.py'])
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.package2module('plain-wheel') == 'oddly_named'
    assert packages.get_installed_path('plain-wheel') == str(tmp_path / 'oddly_named')


def test_editable_install(tmp_path, monkeypatch):
    # The metadata lies in site-packages, the package elsewhere, and a .pth file or a finder leads to it.
    site, source = tmp_path / 'site', tmp_path / 'source'
    (source / 'edited').mkdir(parents=True)
    (source / 'edited' / '__init__.py').touch()
    distribution(site, 'edited-package', ['__editable__.edited_package-1.0.pth'], top_level='edited\n')
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(source)
    assert packages.is_installed('edited-package') and packages.is_installed('edited')
    assert packages.get_installed_path('edited-package') == str(source / 'edited')
    assert packages.get_installed_path('edited') == str(source / 'edited')


def test_fork(tmp_path, monkeypatch):
    (tmp_path / 'forked').mkdir()
    (tmp_path / 'forked' / '__init__.py').touch()
    distribution(tmp_path, 'onedl-forkedtoolbox', [], top_level='forked\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.is_installed('forkedtoolbox')
    assert packages.get_installed_path('forkedtoolbox') == str(tmp_path / 'forked')


def test_distribution_that_does_not_say(tmp_path, monkeypatch):
    distribution(tmp_path, 'silent', [])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match='silent'):
        packages.get_installed_path('silent')


def test_namespace_package(tmp_path, monkeypatch):
    (tmp_path / 'spacious').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not packages.is_installed('spacious')
    with pytest.raises(RuntimeError, match='spacious'):
        packages.get_installed_path('spacious')


@pytest.mark.parametrize(
    ('base', 'model'),
    [
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'MaskRCNN'),
        ('mmdet::_base_/models/retinanet_r50_fpn.py', 'RetinaNet'),
        ('mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', 'EncoderDecoder'),
        ('mmseg::_base_/models/upernet_r50.py', 'EncoderDecoder'),
    ],
)
def test_bases_of_the_toolboxes(base, model, tmp_path):
    (tmp_path / 'config.py').write_text(f'_base_ = [{base!r}]\n')
    assert Config.fromfile(tmp_path / 'config.py').model.type == model
    assert get_config(base).model.type == model


def test_works_with_mmengine_imported_first():
    code = (
        'import mmengine.config, mmengine.utils.package_utils as utils\n'
        'import mmvisattn\n'
        'for module in (mmengine.config.config, mmengine.utils, utils):\n'
        '    assert "/mmdet" in module.get_installed_path("mmdet"), module\n'
        'assert mmengine.config.config.is_installed("mmsegmentation")\n'
        'assert utils.package2module("mmsegmentation") == "mmseg"\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=environment(ROOT))


@pytest.mark.skipif(packages._found('onedl-mmengine'), reason='the forks have no use for it')
def test_pkg_resources_is_used_where_it_is(tmp_path):
    (tmp_path / 'pkg_resources.py').touch()
    code = (
        'import mmvisattn, mmengine.utils\n'
        'assert mmengine.utils.is_installed.__module__ == "mmengine.utils.package_utils"\n'
        'assert mmvisattn.compat._records["packages"].state == "not needed"\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=environment(tmp_path, ROOT))


def environment(*folders):
    import os

    return {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, folders))}
