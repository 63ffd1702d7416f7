"""The page about a model: its numbers, and that it is whole and small."""

import json
import re
from pathlib import Path

from mmvisattn.visualization import Map

import cv2
import html5lib
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.structures import InstanceData, PixelData
from mmseg.evaluation import IoUMetric

from tools.analysis import report
from tools.analysis.report_page import curves, maps, scores
from tools.analysis.subjects import Subject

from ..utils import load_tool
from .pages import SELECTS, STOCK, decode, write

# What is measured


@pytest.fixture(scope='module')
def detection(mask_config) -> tuple[Subject, scores.TestSet]:
    subject = Subject(str(mask_config))
    return subject, scores.TestSet(subject)


def nearly(truth, number: int):
    """A prediction: the objects of a picture, moved, without some of them, and one that is not there."""
    sample, real = truth.clone(), truth.gt_instances
    rng = np.random.default_rng(number)
    boxes = real.bboxes + torch.tensor(rng.uniform(-6, 6, (len(real.bboxes), 4)), dtype=torch.float32)
    masks = torch.from_numpy(np.roll(real.masks.to_ndarray(), 2, axis=2)).bool()
    kept = torch.tensor(rng.random(len(boxes)) < 0.8)
    wrong = InstanceData(bboxes=boxes[:1] / 3, labels=real.labels[:1], scores=torch.tensor([0.5]), masks=~masks[:1])
    found = InstanceData(bboxes=boxes, labels=real.labels, scores=torch.tensor(rng.random(len(boxes))), masks=masks)
    sample.pred_instances = InstanceData.cat([found[kept], wrong])
    return sample


def test_average_precisions_are_those_of_the_stock_metric(detection):
    subject, test_set = detection
    classes = subject.model.dataset_meta['classes']
    scorer = scores.Scorer(classes, score_thr=0.3)
    metric = CocoMetric(ann_file=subject.cfg.test_evaluator.ann_file, metric=['bbox', 'segm'])
    metric.dataset_meta = subject.model.dataset_meta
    for number, path in enumerate(test_set.paths(100)):
        truth = test_set.truth(path)
        sample = nearly(truth, number)
        scorer.add(sample, truth)
        metric.process({}, [sample.to_dict()])
    expected = metric.compute_metrics(metric.results)
    whole, by_class = scorer.tables()
    measured = dict(whole.rows)
    assert 0.05 < expected['bbox_mAP'] < 0.95
    for kind, name in (('bbox', 'box'), ('segm', 'mask')):
        for key, label in (('mAP', 'AP'), ('mAP_50', 'AP50'), ('mAP_75', 'AP75')):
            assert float(measured[f'{name} {label}']) == pytest.approx(expected[f'{kind}_{key}'], abs=2e-3)
    assert np.mean([float(row[2]) for row in by_class.rows]) == pytest.approx(expected['bbox_mAP'], abs=2e-3)
    assert [float(row[2]) for row in by_class.rows] == sorted(float(row[2]) for row in by_class.rows)
    objects = int(measured['objects found']) + int(measured['objects missed'])
    assert objects == sum(int(row[1]) for row in by_class.rows) > 0
    absent = f'{len(classes) - len(by_class.rows)} of {len(classes)} classes do not occur here.'
    assert by_class.note == (absent if len(by_class.rows) < len(classes) else '')


def test_counts_of_a_picture(detection):
    subject, test_set = detection
    truth = next(
        truth for truth in map(test_set.truth, test_set.paths(100)) if len(set(truth.gt_instances.labels.tolist())) > 1
    )
    real = truth.gt_instances
    sample = truth.clone()
    first = InstanceData(bboxes=real.bboxes[:1], labels=real.labels[:1], scores=torch.tensor([0.9]))
    other = InstanceData(bboxes=real.bboxes[:1], labels=(real.labels[:1] + 1) % 3, scores=torch.tensor([0.8]))
    unsure = InstanceData(bboxes=real.bboxes[1:], labels=real.labels[1:], scores=torch.full((len(real) - 1,), 0.1))
    sample.pred_instances = InstanceData.cat([first, other, unsure])
    scorer = scores.Scorer(subject.model.dataset_meta['classes'], score_thr=0.3)
    score = scorer.add(sample, truth)
    missed = len(real) - 1
    assert score.told == f'1 found, {missed} missed, 1 false'
    assert score.value == pytest.approx(2 / (2 + missed + 1))
    assert scores.describe(sample, 'pred', scorer.classes, 0.95) == 'nothing'
    assert scores.describe(sample, 'gt', scorer.classes, 0.95).count(' ') >= 2
    # Nothing found anywhere: COCO's metric has no word for it.
    scorer = scores.Scorer(scorer.classes, score_thr=0.3)
    sample.pred_instances = sample.pred_instances[:0]
    assert scorer.add(sample, truth).value == 0
    assert dict(scorer.tables()[0].rows)['box AP'] == '0.000' and scorer.tables()[1].rows[0][2] == '0.000'


def test_labels_of_pixels_are_measured_as_by_the_stock_metric(seg):
    subject = Subject(str(seg.config))
    test_set = scores.TestSet(subject)
    scorer = scores.Scorer(subject.model.dataset_meta['classes'], 0.3, report.ignore_index(subject))
    metric = IoUMetric()
    metric.dataset_meta = subject.model.dataset_meta
    for number, path in enumerate(test_set.paths(100)):
        truth = test_set.truth(path)
        labels = truth.gt_sem_seg.data.long()
        assert (labels == 255).any() or labels.max() < 150
        predicted = torch.where(labels < 150, labels, 0).clone()
        predicted[:, : 20 * (number + 1)] = 3
        sample = truth.clone()
        sample.pred_sem_seg = PixelData(data=predicted)
        metric.process({}, [sample.to_dict()])
        alone = metric.compute_metrics(metric.results[-1:])
        assert scorer.add(sample, truth).value == pytest.approx(alone['mIoU'] / 100, abs=1e-4)
    expected = metric.compute_metrics(metric.results)
    whole, by_class = scorer.tables()
    values = [float(value) for _, value in whole.rows]
    assert values == pytest.approx([expected[key] / 100 for key in ('mIoU', 'mAcc', 'aAcc')], abs=6e-4)
    assert np.mean([float(row[2]) for row in by_class.rows]) == pytest.approx(expected['mIoU'] / 100, abs=1e-3)


def test_the_worst_come_first_and_those_without_truth_last(monkeypatch):
    values = {'a': 0.7, 'b': 0.2, 'c': None, 'd': 0.4}

    class Everything:
        truth = staticmethod(lambda path: path)
        show = staticmethod(lambda path: path)
        add = staticmethod(lambda sample, truth: None if values[truth] is None else scores.Score(values[truth], ''))

    shown = report.score_pictures(Everything, Everything, Everything, list('abcd'))
    assert [one.path for one in shown] == ['b', 'd', 'a', 'c']


def test_curves_of_a_training_that_was_resumed(tmp_path):
    def log(run: str, *lines: dict, end: str = '') -> None:
        (tmp_path / run / 'vis_data').mkdir(parents=True)
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (tmp_path / run / 'vis_data/scalars.json').write_text(text + end)

    def step(i: int, loss: float) -> dict:
        return dict(lr=0.1, loss=loss, time=1.0, epoch=1, iter=i, memory=3, step=i)

    log('20260101_000000', step(10, 4.0), step(20, 3.0), step(30, 99.0), dict(mAP=0.1, step=1), end='{"loss": 1')
    log('20260102_000000', step(30, 2.0), step(40, float('nan')), dict(mAP=0.3, step=2))
    loss, rate, metric = curves.read_curves(tmp_path)
    assert [loss.name, rate.name, metric.name] == ['loss', 'lr', 'mAP']
    assert (loss.unit, loss.steps, loss.values[:3]) == ('iteration', [10, 20, 30, 40], [4.0, 3.0, 2.0])
    assert (loss.least, loss.largest) == (2.0, 4.0) and len(loss.points.split()) == 3  # what is not finite is not drawn
    corners = [tuple(map(float, corner.split(','))) for corner in loss.points.split()]
    assert corners[0] == (curves.MARGIN, curves.MARGIN) and corners[2][1] == curves.HEIGHT - curves.MARGIN
    assert (metric.unit, metric.steps, metric.values) == ('epoch', [1, 2], [0.1, 0.3])
    assert loss.rows[-1] == ('40', 'nan')


def test_long_curves_are_means(tmp_path):
    (tmp_path / '1/vis_data').mkdir(parents=True)
    lines = [json.dumps(dict(loss=float(i), iter=i, step=i)) for i in range(1, 1001)]
    (tmp_path / '1/vis_data/scalars.json').write_text('\n'.join(lines))
    (loss,) = curves.read_curves(tmp_path)
    assert loss.merged == 5 and len(loss.values) == curves.MOST_POINTS and loss.values[:2] == [3.0, 8.0]
    assert len(loss.rows) == curves.ROWS


# Maps


@pytest.mark.parametrize('rows', [7, 200])
def test_a_map_lies_where_it_belongs(rows):
    """Also one that reaches beyond the picture, and one of more positions than are kept."""
    cell, size = 128 / rows, (96, 112)
    values = np.zeros((rows, rows), np.float32)
    centre = (int(40 / cell), int(72 / cell))
    values[tuple(slice(max(i - rows // 14, 0), i + rows // 14 + 1) for i in centre)] = 1
    (layer,) = maps.pack_layers([Map('context', 'a', 'all heads', values, (cell, cell))], size, most=10**6)
    grey = decode(layer.maps)
    grey = grey if grey.ndim == 2 else grey[..., 0]
    assert grey.shape == (round(96 * 64 / 112), 64)
    weight = np.maximum(grey.astype(float) - 100, 0)
    middle = [(weight.sum(1 - axis) @ (np.arange(n) + 0.5)) / weight.sum() / n for axis, n in enumerate(grey.shape)]
    expected = [(i + 0.5) * cell / length for i, length in zip(centre, size)]
    assert middle == pytest.approx(expected, abs=0.02)
    left, top = re.search(r'largest at (\d+)% of the width from the left and (\d+)%', layer.heads[0].told).groups()
    assert abs(int(top) / 100 - expected[0]) < 0.1 and abs(int(left) / 100 - expected[1]) < 0.1


def test_cells_keep_their_edges():
    chosen = np.zeros((3, 4), bool)
    chosen[1, 2] = True
    (layer,) = maps.pack_layers([Map('cells', 'a', 'chosen', chosen, (32.0, 32.0))], (80, 120), most=10**6)
    expected = np.zeros((80, 120), np.uint8)
    expected[32:64, 64:96] = 255
    assert np.array_equal(decode(layer.maps), expected)
    assert layer.heads[0].told == '1 of 12 cells are chosen, the others dark'


def test_many_maps_of_noise_keep_within_their_bytes():
    rng = np.random.default_rng(0)
    noise = [
        Map('similarity', f'block {i}', f'head {j}', rng.normal(size=(90, 120)), (4.0, 4.0))
        for i in range(12)
        for j in range(8)
    ]
    layers = maps.pack_layers(noise, (360, 480), maps.MAPS_BYTES)
    assert len(layers) == 12 and all(len(layer.heads) == 8 for layer in layers)
    assert sum(len(layer.maps) for layer in layers) * 3 / 4 <= maps.MAPS_BYTES
    photo = maps.photograph(rng.integers(0, 256, (900, 1200, 3)).astype(np.uint8))
    assert len(photo) * 3 / 4 <= maps.PHOTO_BYTES and max(decode(photo).shape) == maps.PHOTO_SIDE


def test_ten_pictures_are_less_than_5_mb(seg, tmp_path):
    paths = [tmp_path / f'{i}.png' for i in range(10)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), np.random.default_rng(i).integers(0, 256, (480, 640, 3)).astype(np.uint8))
    page = write(tmp_path, seg.config, *paths, '--checkpoint', seg.checkpoint)
    assert page.read_text().count('<article') == 10
    assert page.stat().st_size < 5_000_000


# The page as it is written


def parse(page: Path):
    """The page, in which nothing breaks the rules of HTML."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page.read_text(encoding='utf-8'))


def text_of(element) -> str:
    return ' '.join(''.join(element.itertext()).split())


def test_it_is_whole_and_accessible_as_written(page):
    root = parse(page)
    assert root.get('lang') == 'en' and text_of(root.find('.//h1')) in text_of(root.find('.//title'))
    levels = [int(element.tag[1]) for element in root.iter() if re.fullmatch('h[1-6]', str(element.tag))]
    assert levels[0] == 1 and all(lower - upper <= 1 for upper, lower in zip(levels, levels[1:]))
    ids = [element.get('id') for element in root.iter() if element.get('id')]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ('src', 'href'):
                assert value.startswith(('data:', '#')) and (value[0] != '#' or value[1:] in ids)
            if name in ('aria-labelledby', 'for'):
                assert set(value.split()) <= set(ids)
    for image in root.iter('img'):
        assert image.get('id') == 'photo' or len(image.get('alt')) > 5
    for table in root.iter('table'):
        assert text_of(table.find('caption'))
        assert all(cell.get('scope') for cell in table.iter('th')) and list(table.iter('td'))
    assert [label.get('for') for label in root.iter('label') if text_of(label)] == [*SELECTS, 'strength']
    assert [control.get('id') for control in root.iter() if control.tag in ('select', 'input')] == [
        *SELECTS,
        'strength',
    ]
    assert 'http' not in re.sub(r'<pre.*?</pre>|http-equiv', '', page.read_text(), flags=re.S)
    assert page.stat().st_size < 5_000_000


def test_names_are_text(flex, stock):
    for page in (flex, stock):
        root = parse(page)
        assert not list(root.iter('b')) and '<b onclick' not in page.read_text()
        assert '<b onclick="alert(1)">&.png' in json.loads(root.find(".//script[@id='data']").text)['views'][0]['name']


def rows_of(page: Path) -> dict[str, str]:
    """Name and first value of the rows of all tables, of the first one where names are alike."""
    rows = [[text_of(cell) for cell in row if cell.tag in ('th', 'td')] for row in parse(page).iter('tr')]
    return {row[0]: row[1] for row in reversed(rows)}


def test_facts(segmentor, stock, seg):
    rows = rows_of(segmentor)
    checkpoint = torch.load(seg.checkpoint, weights_only=False)['state_dict']
    count = sum(value.numel() for key, value in checkpoint.items() if not re.search('running|num_batches', key))
    assert rows['parameters'] == f'{count / 1e6:.3f} million' and rows['all'] == f'{count / 1e6:.3f}'
    assert rows['architecture'] == 'EncoderDecoder' and rows['backbone'] == 'FCViT'
    assert rows['weights'] == str(seg.checkpoint)
    assert float(rows['prediction, with pre- and post-processing'].split()[0]) > 0
    assert (
        'mIoU' in rows
        and 'loss' in segmentor.read_text()
        and f'From the logs in {seg.work_dir}' in text_of(parse(segmentor))
    )
    assert '</svg>' in segmentor.read_text()
    rows = rows_of(stock)
    assert rows['architecture'] == 'RetinaNet' and rows['weights'] == 'random, of seed 0' and 'box AP' not in rows
    text = text_of(parse(stock))
    assert 'No truth: ' in text and 'No curves: ' in text and 'Truth:' not in text


def test_flops_are_those_of_the_counting_tool(stock, photos):
    get_flops = load_tool('analysis/get_flops')
    counter = get_flops.count(STOCK, (192, 256))
    assert rows_of(stock)['what the backbone is given'].startswith('192×256')
    told = float(rows_of(stock)['FLOPs of a prediction'].split()[0])
    assert told == pytest.approx(counter.flops[''] / 1e9, abs=2e-3)


@pytest.mark.parametrize(
    ('network', 'kinds'),
    [
        ('FCViT:tiny', ['similarity', 'context', 'features']),
        ('DefocusRetNet:small', ['features', 'over-focus']),
        ('timm:resnet18', ['features', 'field']),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_all_that_a_network_has_can_be_chosen(network, kinds, photos, tmp_path):
    show = ['--show', *kinds] if 'field' in kinds else []
    root = parse(write(tmp_path, network, *photos, '--size', '64x96', *show))
    for view in json.loads(root.find(".//script[@id='data']").text)['views']:
        assert {layer['what'] for layer in view['layers']} == {maps.WHAT[kind] for kind in kinds}
        for layer in view['layers']:
            grey = decode(layer['maps'])
            assert grey.shape[0] % len(layer['heads']) == 0 and grey.std() > 1


def test_each_crop_is_a_view(seg, tmp_path):
    sizes = ['model.test_cfg.mode=slide', 'model.test_cfg.crop_size=(64,64)', 'model.test_cfg.stride=(64,64)']
    page = write(tmp_path, seg.config, '--num-images', 2, '--cfg-options', *sizes)
    root = parse(page)
    views = [view['name'] for view in json.loads(root.find(".//script[@id='data']").text)['views']]
    names = list(dict.fromkeys(view.partition(',')[0] for view in views))
    assert views == [f'{name}, crop {i} of 4' for name in names for i in range(1, 5)] and len(names) == 2  # of 128×96
    assert [button.get('data-view') for button in root.iter('button')] == ['0', '4']


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['FCViT:tiny', 'PHOTO', '--show', 'cells'], '--show cells: this network has similarity, context, features'),
        (['FCViT:tiny', 'PHOTO', '--measure', '3'], '--measure is of the test set'),
        (['FCViT:tiny', 'PHOTO', '--out', 'report.pdf'], "--out 'report.pdf': give a file that ends in .html"),
        (['FCViT:tiny', 'PHOTO', '--score-thr', '3'], '--score-thr 3.0: give a score from 0 to 1'),
        (['FCViT:tiny', 'PHOTO', '--work-dir', 'FOLDER'], 'has no logs of a training'),
        (['FCViT:tiny'], "'FCViT:tiny' has no test set; give pictures"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else '',
)
def test_what_can_be_put_right_is_told_in_one_line(args, told, photos, tmp_path, capsys):
    names = dict(PHOTO=str(photos[1]), FOLDER=str(tmp_path))
    with pytest.raises(SystemExit):
        report.main([names.get(arg, arg) for arg in args])
    assert told in capsys.readouterr().err
