"""What is installed speaks of itself alone: a wheel has no tools, configs, docs and tests."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError

import pytest
from mmengine.config import ConfigDict

PACKAGE = Path(cli.__file__).parent
OF_A_CLONE = re.compile(r'\b(?:tools|configs|docs|tests)/[\w./-]+')


def test_the_package_names_no_files_of_a_clone():
    named = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob('*')
        if path.suffix in ('.py', '.cpp')
        for name in OF_A_CLONE.findall(path.read_text())
    }
    # Said where it is there, as the next test shows.
    assert named == {('cli.py', 'tools/data/make_mini.py'), ('cli.py', 'configs/mini')}


@pytest.mark.parametrize('in_a_clone', [True, False])
def test_missing_data_are_told_with_the_mini_data_where_these_can_be_drawn(in_a_clone, monkeypatch, tmp_path):
    if not in_a_clone:
        monkeypatch.setattr(cli, 'CLONE', tmp_path)
    cfg = ConfigDict(train_dataloader=dict(dataset=dict(data_root=str(tmp_path), ann_file='a.json')))
    with pytest.raises(UserError) as error_info:
        cli.check_data(cfg, 'train_dataloader')
    assert ('make_mini.py' in str(error_info.value)) == ('configs/mini' in str(error_info.value)) == in_a_clone


# What users of an installed package do, in a folder that is no clone.
USE = """
import mmvisattn, numpy, torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.hub import get_config
from mmseg.apis import MMSegInferencer

print(mmvisattn.__file__)
print(*DetInferencer.list_models('mmvisattn'))
with open('own.py', 'w') as file:
    file.write("_base_ = 'mmvisattn::fcvit/mask-rcnn_fcvit-b12_fpn_1x_coco.py'")
print(Config.fromfile('own.py').model.backbone.arch)
image = numpy.zeros((64, 96, 3), 'uint8')
configs = {
    DetInferencer: 'mmvisattn::mini/mask-rcnn_flexvit-mini_simple-fpn_coco.py',
    MMSegInferencer: 'mmvisattn::mini/fcvit-mini_fpn_ade20k.py',
}
for inferencer, config in configs.items():
    print(*inferencer(get_config(config).filename, device='cpu')(image))
"""


def test_a_wheel_away_from_the_clone_has_its_configs(tmp_path):
    root, source = PACKAGE.parent, tmp_path / 'source'
    for name in ('mmvisattn', 'requirements'):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(root / name, source)
    wheel = [sys.executable, 'setup.py', '--quiet', 'bdist_wheel', '--dist-dir', tmp_path]
    subprocess.run(wheel, cwd=source, check=True, capture_output=True)
    (built,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / 'site')
    carried = tmp_path / 'site/mmvisattn/.mim'
    assert {path.relative_to(carried) for path in carried.rglob('*') if path.is_file()} == {
        Path('model-index.yml'),
        *(path.relative_to(root) for path in (root / 'configs').rglob('*.*') if path.suffix in ('.py', '.yml', '.md')),
    }
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site'), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert str(tmp_path / 'site/mmvisattn/__init__.py') in lines
    assert 'mask-rcnn_fcvit-b12_fpn_1x_coco' in done.stdout.split()
    assert 'b12' in lines
    assert [line.split()[0] for line in lines if line.startswith('predictions')] == ['predictions'] * 2
