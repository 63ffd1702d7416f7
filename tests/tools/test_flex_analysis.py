import re
from pathlib import Path

from mmvisattn.models.backbones import FlexViT
from mmvisattn.models.layers.selection import TokenSelector
from mmvisattn.models.necks import FlexAttentionNeck
from mmvisattn.visualization import CAPTION_HEIGHT, GAP, PANEL_SIZE

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from .utils import load_tool, run_tool

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


def test_flex_cost_prints_flops_time_and_the_share_of_selection(capsys):
    tool = load_tool('analysis/flex_cost')
    tool.main(['--arch', 'tiny', '--sizes', '128x128', '--ratios', '0.25', '1.0', '--rounds', '1', '--device', 'cpu'])
    out = capsys.readouterr().out
    gflops = [float(row) for row in re.findall(r'^\| [^|]+ \| ([\d.]+) \|', out, re.MULTILINE)]
    low, quarter, everything, full = gflops
    assert low < quarter < full < everything
    shares = re.findall(r'^\| 1×3×128×128 \| \d+% \| ([\d.]+)% \| -?[\d.]+% \|$', out, re.MULTILINE)
    assert len(shares) == 2 and all(0 < float(share) < 10 for share in shares)


def test_flex_cost_counts_what_the_formula_says():
    tool = load_tool('analysis/flex_cost')
    with torch.device('meta'), torch.no_grad():
        network, x = tool.PlainViT('tiny', 2), torch.randn(1, 3, 256, 256)
        counted = tool.flops(lambda: network(x))
    dim, tokens = 192, 64
    layer = 2 * 12 * tokens * dim**2 + 2 * 2 * tokens**2 * dim
    assert counted == 12 * layer + 2 * tokens * 3 * 16**2 * dim


def flex_config(base: Path, text: str, folder: Path) -> tuple[Path, Path]:
    """A config with other parts, and a checkpoint of random weights."""
    path = folder / 'flex.py'
    path.write_text(f"_base_ = '{base}'\n{text}")
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'flex.pth')
    return path, folder / 'flex.pth'


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


def test_flex_cells_draws_what_backbone_and_neck_selected(det_config, mini_data, tmp_path, monkeypatch, capsys):
    config, checkpoint = flex_config(det_config, BACKBONE + WITH_NECK, tmp_path)
    chosen = watch_selections(monkeypatch, (3, 4))
    run_tool('analysis/flex_cells', config, checkpoint, '--images', 2, '--out-dir', tmp_path / 'cells')
    images = sorted((mini_data / 'coco/val2017').iterdir())[:2]
    drawings = [tmp_path / 'cells' / image.name for image in images]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(drawing) for drawing in drawings]
    assert sorted((tmp_path / 'cells').iterdir()) == drawings
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


def test_flex_cells_draws_each_crop_of_a_given_picture(seg_config, mini_data, tmp_path, monkeypatch):
    config, checkpoint = flex_config(seg_config, BACKBONE + ON_CROPS, tmp_path)
    image = sorted((mini_data / 'ade/ADEChallengeData2016/images/validation').iterdir())[-1]
    chosen = watch_selections(monkeypatch, (2, 2))
    run_tool('analysis/flex_cells', config, checkpoint, image, '--out-dir', tmp_path / 'cells')
    assert list((tmp_path / 'cells').iterdir()) == [tmp_path / 'cells' / image.name]
    panels = panels_of(tmp_path / 'cells' / image.name, (PANEL_SIZE, PANEL_SIZE), [2] * 4)
    for picture, *layers in panels:
        for layer in layers:
            np.testing.assert_array_equal(bright_cells(layer, picture, (2, 2)), chosen.pop(0))
    assert not chosen


@pytest.mark.parametrize(
    ('network', 'levels', 'layer', 'cell'),
    [
        (FlexViT(SMALL, 8, 64, zoom=3, num_glance_layers=2, cell_size=1), None, 2, (24, 24)),
        # 45 rows are 6 tokens of stride 8 and 3 of stride 16, whose cells are two high.
        (FlexAttentionNeck(16, 1, 0, num_heads=2, cell_size=2), [(6, 9), (3, 5)], 1, (30, 280 / 9)),
    ],
    ids=['backbone', 'neck'],
)
def test_recorder_numbers_the_layer_and_measures_the_cells(network, levels, layer, cell):
    tool = load_tool('analysis/flex_cells')

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Identity() if levels else network
            self.neck = network

        def forward(self, x):
            x = self.backbone(x)
            return self.neck([torch.randn(1, 16, *level) for level in levels]) if levels else x

    model = Model().eval()
    recorder = tool.Recorder(model)
    x = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        model(x)
        model(x)
    assert len(recorder.views) == 2
    for view in recorder.views:
        assert view.network == type(network).__name__
        assert view.layer == layer
        assert view.cell == pytest.approx(cell)
        # they cover the image, and there are no more of them than that takes
        assert all(side * n >= size > side * (n - 1) for side, n, size in zip(cell, view.chosen.shape, (45, 70)))


def test_flex_cells_refuses(det_config, mini_data, tmp_path, capsys):
    def refused(config, *args) -> str:
        with pytest.raises(SystemExit) as exit_info:
            run_tool('analysis/flex_cells', config, checkpoint, *args)
        assert exit_info.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    config, checkpoint = flex_config(det_config, BACKBONE + WITH_NECK, tmp_path)
    line = refused(det_config)
    assert line.startswith('error: the model has no FlexAttention; give the config of')
    image = next((mini_data / 'coco/val2017').iterdir())
    assert 'would overwrite' in refused(config, image, '--out-dir', image.parent)
    assert 'would overwrite' in refused(config, image, image, '--out-dir', tmp_path)
    assert 'is no picture that OpenCV reads; the order is CONFIG CHECKPOINT IMAGE' in refused(config, config)
    assert "'none.jpg' does not exist" in refused(config, 'none.jpg')
