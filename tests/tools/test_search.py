"""Scenes for a search, and what they give away."""

import json
from dataclasses import replace

from mmvisattn.models.layers.scout import Scout

import numpy as np
import pytest
import torch

from tools.analysis import search_gates as gates
from tools.data.make_mini import make_mini
from tools.data.mini_scenes import OTHER, Options, to_pixels
from tools.data.mini_search import DECOY, DIAMETER, GROUND, TARGETS, draw_search

OPTIONS = Options(train=12, val=6, size=(128, 128), classes=3, objects=(1, 2), empty=0.15, decoys=(2, 4))


@pytest.fixture(scope='module')
def scenes():
    return [draw_search(OPTIONS, 0, index) for index in range(20)]


def test_a_scene_depends_on_its_numbers_alone(scenes):
    again = draw_search(OPTIONS, 0, 7)
    np.testing.assert_array_equal(scenes[7].image, again.image)
    assert scenes[7].decoys == again.decoys
    assert not np.array_equal(draw_search(OPTIONS, 1, 7).image, again.image)
    assert not np.array_equal(draw_search(replace(OPTIONS, seed=1), 0, 7).image, again.image)


def test_targets_and_decoys_are_as_many_and_as_large_as_asked_for(scenes):
    counts = [len(scene.instances) for scene in scenes]
    assert counts.count(0) == 3 and set(counts) == {0, 1, 2}
    assert {instance.thing.coco_name for scene in scenes for instance in scene.instances} == {
        target.coco_name for target in TARGETS
    }
    for scene in scenes:
        assert 2 <= len(scene.decoys) <= 4
        for instance in scene.instances:
            area = to_pixels(instance.mask).sum()
            assert 0.85 * DIAMETER[0] ** 2 < area * 4 / np.pi < 1.15 * DIAMETER[1] ** 2


def test_labels_are_those_of_what_was_drawn(scenes):
    for scene in scenes:
        assert 0.01 < (scene.labels == GROUND).mean() < 0.1
        expected = np.where(scene.labels == GROUND, GROUND, OTHER)
        for instance in scene.instances:
            expected[to_pixels(instance.mask)] = instance.thing.ade_label
        decoys = scene.labels == DECOY
        np.testing.assert_array_equal(scene.labels[~decoys], expected[~decoys])
        for x, y, width, height in scene.decoys:
            here = decoys[round(y) : round(y + height), round(x) : round(x + width)]
            assert here.mean() > 0.3
            decoys[round(y) : round(y + height) + 1, round(x) : round(x + width) + 1] = False
        assert decoys.sum() < 0.005 * decoys.size


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(decoys=(3, 2)), '--decoys 3 2: allowed are 0 <= MIN <= MAX'),
        (dict(classes=6), '--classes 6: beside --decoys there are 3 classes'),
        (dict(smallest=10), 'count for nothing beside --decoys'),
    ],
)
def test_wrong_options_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **change)


def test_a_set_of_before_there_were_decoys_is_still_the_same_set(tmp_path):
    options = Options(train=1, val=1, size=(64, 64), shares=(1, 0, 0))
    assert make_mini(options, tmp_path / 'mini')
    written = json.loads((tmp_path / 'mini/mini.json').read_text())
    del written['options']['decoys']
    (tmp_path / 'mini/mini.json').write_text(json.dumps(written))
    assert not make_mini(options, tmp_path / 'mini')


# The gates.


def test_coverage_by_hand():
    scores = np.array([[0.0, 3.0], [2.0, 1.0]])  # cells of 32 pixels
    boxes = [(40.0, 4.0, 10.0, 10.0), (16.0, 40.0, 32.0, 8.0), (4.0, 4.0, 8.0, 8.0)]
    assert gates.coverage(scores, boxes, 0.25) == [1.0, 0.0, 0.0]
    assert gates.coverage(scores, boxes, 0.5) == [1.0, 0.5, 0.0]


def test_measures_of_contrast_find_what_stands_out():
    image = np.full((64, 96, 3), 0.5, np.float32)
    image[40:50, 70:80] = (0.9, 0.5, 0.1)
    image[8:24:2, 8:24] = 0.7
    for measure in (gates.pixel_deviation, gates.colour_contrast):
        scores = measure(image)
        assert scores.shape == (2, 3) and np.unravel_index(scores.argmax(), scores.shape) == (1, 2)


def test_a_small_network_tells_what_can_be_told():
    rng = np.random.default_rng(0)

    def patches(count: int, level: float) -> list[np.ndarray]:
        return list(rng.normal(level, 0.1, (count, 9, 9, 3)).astype(np.float32))

    assert gates.accuracy([patches(60, 0.4), patches(20, 0.6)], [patches(30, 0.4), patches(30, 0.6)]) > 0.9
    assert 0.25 < gates.accuracy([patches(60, 0.5), patches(60, 0.5)], [patches(40, 0.5), patches(40, 0.5)]) < 0.75


def test_a_scout_finds_what_can_be_found(monkeypatch):
    monkeypatch.setattr(gates, 'STEPS', 100)
    rng = np.random.default_rng(0)

    def scenes(count: int, contrast: int) -> list:
        made = []
        for _ in range(count):
            image = rng.integers(80, 120, (128, 128, 3), np.uint8)
            x, y = rng.integers(4, 112, 2)
            image[y : y + 10, x : x + 10] += np.uint8(contrast)
            made.append((image, [(float(x), float(y), 10.0, 10.0)], [0], []))
        return made

    for contrast, least, most in ((60, 0.9, 1.0), (0, 0.0, 0.35)):  # two cells of 16
        torch.manual_seed(0)
        found = gates.share_found(Scout(3, 16), scenes(64, contrast), scenes(60, contrast), 2)
        assert least <= found <= most


def test_the_command_prints_all_gates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gates, 'STEPS', 3)
    make_mini(replace(OPTIONS, train=30, val=12), tmp_path / 'mini')
    capsys.readouterr()
    gates.main([str(tmp_path / 'mini')])
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 13
    assert [row[2] for row in rows] == [
        f'{chance} |' for chance in ('0.050', '0.100') * 2 + ('0.500', '0.500', '0.333') * 2 + ('0.100',) * 3
    ]
    assert all(0 <= float(row[1]) <= 1 for row in rows)
