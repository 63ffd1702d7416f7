"""What can be seen inside of networks of each family, of others, and of a model of a config."""

from mmvisattn.visualization import GAP

import cv2
import numpy as np
import pytest

from tools.analysis import visualize


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'scene.png'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8))
    return str(path)


@pytest.mark.parametrize(
    ('network', 'kinds'),
    [
        ('FCViT:tiny', {'similarity', 'context', 'features', 'field'}),
        ('DefocusMamba:small', {'over-focus', 'filters', 'features', 'field'}),
        ('DefocusRetNet:base', {'over-focus', 'filters', 'features', 'field'}),
        ('FlexViT:tiny', {'questions', 'cells', 'features', 'field'}),
        ('timm:resnet18', {'features', 'field'}),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_all_that_a_network_has_is_drawn(network, kinds, picture, tmp_path, capsys):
    visualize.main([network, picture, '--size', '64x96', '--out-dir', str(tmp_path / 'out'), '--device', 'cpu'])
    shown = capsys.readouterr().out.split()
    drawn = {path.stem.removeprefix('scene-'): path for path in (tmp_path / 'out').iterdir()}
    assert set(drawn) == kinds and {str(path) for path in drawn.values()} == set(shown)
    for path in drawn.values():
        assert cv2.imread(str(path)).std() > 5  # not blank


def test_a_model_of_a_config_and_its_checkpoint(seg, tmp_path, capsys):
    config, checkpoint = str(seg.config), str(seg.checkpoint)
    argv = [config, '--num-images', '2', '--show', 'similarity', '--out-dir', str(tmp_path), '--device', 'cpu']
    visualize.main([*argv, '--checkpoint', checkpoint, checkpoint])
    paths = capsys.readouterr().out.split()
    sheets = [cv2.imread(path) for path in paths if path.endswith('.jpg')]
    assert len(sheets) == 2
    for sheet in sheets:  # the same weights twice, side by side
        width = (sheet.shape[1] - GAP) // 2
        assert np.abs(sheet[:, :width].astype(int) - sheet[:, -width:]).mean() < 3  # what JPEG leaves of it


def test_what_a_network_lacks_is_told(picture, tmp_path, capsys):
    with pytest.raises(SystemExit):
        visualize.main(['FCViT:tiny', picture, '--show', 'cells', '--out-dir', str(tmp_path)])
    assert '--show cells: this network has similarity, context, features, field' in capsys.readouterr().err
