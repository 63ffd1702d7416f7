"""What can be seen inside of networks of each family, of others, and of models of a config."""

from pathlib import Path

from mmvisattn.models.layers.selection import TokenSelector
from mmvisattn.visualization import CAPTION_HEIGHT, GAP, PANEL_SIZE

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from tools.analysis import visualize

from .utils import run_tool

SMALL = dict(embed_dims=24, depth=4, num_heads=3, mlp_ratio=2)

BACKBONE = f"""
model = dict(
    backbone=dict(
        _delete_=True, type='mmvisattn.FlexViT', arch={SMALL}, patch_size=8, pretrain_size=64, num_glance_layers=1
    ),
"""
# Cells of 32 pixels in backbone and neck.
WITH_NECK = """
    neck=[
        dict(type='mmvisattn.SimpleFPN', in_channels=24, out_channels=16, num_outs=5, start_level=2),
        dict(
            type='mmvisattn.FlexAttentionNeck',
            in_channels=16,
            low_level=2,
            high_level=0,
            num_heads=2,
            select_mode='threshold',
        ),
    ],
)
"""
ON_CROPS = """
    neck=dict(_delete_=True, type='mmvisattn.SimpleFPN', in_channels=24, out_channels=16, num_outs=4, start_level=1),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(64, 64)),
)
"""


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
        ('DefocusRetNet:small', {'over-focus', 'filters', 'features', 'field'}),
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


def test_pictures_do_not_leak_into_each_other(picture, tmp_path):
    paths = [tmp_path / 'a.png', tmp_path / 'b.png']
    for path in paths:
        path.write_bytes(Path(picture).read_bytes())
    argv = ['timm:resnet18', *map(str, paths), '--size', '64x96', '--show', 'features', 'field', '--device', 'cpu']
    visualize.main([*argv, '--out-dir', str(tmp_path / 'out')])
    for kind in ('features', 'field'):
        first, second = (cv2.imread(str(tmp_path / f'out/{name}-{kind}.jpg')) for name in 'ab')
        assert np.array_equal(first, second), kind


def test_the_glance_has_the_shape_of_the_picture(tmp_path):
    """The cells span 64×128 of the 60×100 pixels; what fills them up is not shown, and a disc stays round."""
    scene = cv2.circle(np.full((60, 100, 3), 128, np.uint8), (40, 30), 20, (255, 255, 255), -1)
    cv2.imwrite(str(tmp_path / 'scene.png'), scene)
    visualize.main(['FlexViT:tiny', str(tmp_path / 'scene.png'), '--show', 'questions', '--out-dir', str(tmp_path)])
    height, width = 96, 160
    sheet = cv2.imread(str(tmp_path / 'scene-questions.jpg'))[CAPTION_HEIGHT : CAPTION_HEIGHT + height]
    glance = sheet[:, width + GAP : 2 * width + GAP].astype(int)
    assert np.abs(glance - cv2.resize(scene, (width, height))).mean() < 5
    (_, (across, down), _) = cv2.fitEllipse(cv2.findNonZero((glance[..., 0] > 190).astype(np.uint8)))
    assert 0.9 < across / down < 1.1


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


def test_some_layers_and_narrower(picture, tmp_path, capsys):
    words = ['FCViT:tiny', picture, '--size', '64x96', '--show', 'similarity', '--out-dir', str(tmp_path / 'out')]
    sizes = []
    for flags in ([], ['--layers', 'stage 3'], ['--layers', 'stage 3', '--width', '300']):
        visualize.main([*words, *flags])
        sizes.append(cv2.imread(str(tmp_path / 'out/scene-similarity.jpg')).shape[:2])
    (rows, width), (some, same), (low, narrow) = sizes
    assert (rows + GAP) * 5 == (some + GAP) * 13 and same == width  # of 3, 3, 5 and 2 blocks
    assert narrow == 300 and low == round(some * 300 / width)
    with pytest.raises(SystemExit):
        visualize.main([*words, '--layers', 'stage 5'])
    assert (
        "--layers 'stage 5': no layer of similarity has this in its name; there are stage 1" in capsys.readouterr().err
    )


def test_filters_of_a_layer(tmp_path, capsys):
    words = ['DefocusRetNet:small', '--show', 'filters', '--out-dir', str(tmp_path)]
    heights = []
    for flags in ([], ['--layers', 'layer 12']):
        visualize.main([*words, *flags])
        heights.append(len(cv2.imread(str(tmp_path / 'filters.png'))))
    assert heights[0] == pytest.approx(3 * heights[1], abs=2)
    with pytest.raises(SystemExit):
        visualize.main([*words, '--layers', 'stage 1'])
    assert "--layers 'stage 1': no filter is in a layer of such a name; there are layer 1" in capsys.readouterr().err


def test_what_a_network_lacks_is_told(picture, tmp_path, capsys):
    with pytest.raises(SystemExit):
        visualize.main(['FCViT:tiny', picture, '--show', 'cells', '--out-dir', str(tmp_path)])
    assert '--show cells: this network has similarity, context, features, field' in capsys.readouterr().err


def flex_config(base: Path, text: str, folder: Path) -> tuple[Path, Path]:
    """A config with other parts, and a checkpoint of random weights."""
    path = folder / 'flex.py'
    path.write_text(f"_base_ = '{base}'\n{text}")
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'flex.pth')
    return path, folder / 'flex.pth'


def show_cells(config: Path, checkpoint: Path, out_dir: Path, *args: object) -> None:
    run_tool('analysis/visualize', config, *args, '--checkpoint', checkpoint, '--show', 'cells', '--out-dir', out_dir)


def watch_selections(monkeypatch, shape: tuple[int, int]) -> list[np.ndarray]:
    """The cells that selectors choose from now on."""
    chosen, forward = [], TokenSelector.forward

    def watched(self, *args):
        selection = forward(self, *args)
        chosen.append(selection.mask(shape)[0].numpy())
        return selection

    monkeypatch.setattr(TokenSelector, 'forward', watched)
    return chosen


def panels_of(path: Path, panel: tuple[int, int], counts: list[int]) -> list[list[np.ndarray]]:
    """The panels of a drawing, row by row, without captions; it must have the size of so many panels."""
    drawing = cv2.imread(str(path)).astype(float)
    height, width = panel
    row_height = CAPTION_HEIGHT + height
    assert drawing.shape == (
        len(counts) * (row_height + GAP) - GAP,
        max(counts) * (width + GAP) - GAP,
        3,
    )
    tops = [i * (row_height + GAP) + CAPTION_HEIGHT for i in range(len(counts))]
    lefts = [i * (width + GAP) for i in range(max(counts))]
    return [
        [drawing[top : top + height, left : left + width] for left in lefts[:count]] for top, count in zip(tops, counts)
    ]


def bright_cells(panel: np.ndarray, picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Which cells of a panel are as bright as in the picture; all others must be dimmed."""
    means = []
    for image in (panel, picture):
        rows = np.split(image, shape[0])
        means.append(np.array([[cell.mean() for cell in np.split(row, shape[1], axis=1)] for row in rows]))
    ratio = means[0] / means[1]
    assert np.all((ratio > 0.95) | (ratio < 0.4))
    return ratio > 0.95


def test_cells_are_those_that_backbone_and_neck_selected(det_config, mini_data, tmp_path, monkeypatch, capsys):
    config, checkpoint = flex_config(det_config, BACKBONE + WITH_NECK, tmp_path)
    chosen = watch_selections(monkeypatch, (3, 4))
    out_dir = tmp_path / 'cells'
    show_cells(config, checkpoint, out_dir, '--num-images', 2)
    *drawings, often = map(Path, capsys.readouterr().out.split()[-3:])
    assert often == out_dir / 'chosen-often.jpg' and set(out_dir.iterdir()) == {*drawings, often}
    images = [next((mini_data / 'coco/val2017').glob(drawing.name.replace('-cells.jpg', '.*'))) for drawing in drawings]
    assert len(chosen) == 2 * 2
    for image, drawing in zip(images, drawings):
        panels = panels_of(drawing, (240, 320), [2, 2])  # backbone and neck
        expected = cv2.resize(cv2.imread(str(image)), (320, 240), interpolation=cv2.INTER_CUBIC)
        for picture, *layers in panels:
            assert np.abs(picture - expected).mean() < 3
            for layer in layers:
                cells = chosen.pop(0)
                assert 0 < cells.sum() < cells.size
                np.testing.assert_array_equal(bright_cells(layer, picture, (3, 4)), cells)


def test_cells_of_each_crop_of_a_given_picture(seg_config, mini_data, tmp_path, monkeypatch):
    config, checkpoint = flex_config(seg_config, BACKBONE + ON_CROPS, tmp_path)
    image = sorted((mini_data / 'ade/ADEChallengeData2016/images/validation').iterdir())[-1]
    chosen = watch_selections(monkeypatch, (2, 2))
    show_cells(config, checkpoint, tmp_path / 'cells', image)
    (drawing,) = (tmp_path / 'cells').iterdir()
    panels = panels_of(drawing, (PANEL_SIZE, PANEL_SIZE), [2] * 4)
    for picture, *layers in panels:
        for layer in layers:
            np.testing.assert_array_equal(bright_cells(layer, picture, (2, 2)), chosen.pop(0))
    assert not chosen


def test_refusals(det_config, mini_data, tmp_path, capsys):
    def refused(*args: object) -> str:
        with pytest.raises(SystemExit) as exit_info:
            show_cells(*args)
        assert exit_info.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    config, checkpoint = flex_config(det_config, BACKBONE + WITH_NECK, tmp_path)
    image = next((mini_data / 'coco/val2017').iterdir())
    assert 'would overwrite' in refused(config, checkpoint, tmp_path, image, image)
    assert 'is no picture that OpenCV reads; the order is NETWORK IMAGE' in refused(
        config, checkpoint, tmp_path, config
    )
    assert "'none.jpg' does not exist" in refused(config, checkpoint, tmp_path, 'none.jpg')
