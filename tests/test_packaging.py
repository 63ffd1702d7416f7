"""What is installed speaks of itself alone: a wheel has no tools, configs, docs and tests."""

import re
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
