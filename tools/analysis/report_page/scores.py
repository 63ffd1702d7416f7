"""Predictions beside truth: what the annotations of a test set say of a picture, and how well a model agrees."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.registry import type_name

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DATASETS

from tools import predict

from ..subjects import Subject

IOU = 0.5  # of boxes of one class, from which an object counts as found
KEYS = ('bboxes', 'labels', 'scores')
NAMED = 6  # classes at most in the description of a picture


@dataclass
class Table:
    """A table of the page.

    Args:
        caption (str): What it shows.
        columns (list[str]): Heads of the columns; the first is that of the names of the rows.
        rows (list[list[str]]): Cells.
        note (str): What else is to be said. Defaults to nothing.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ''


@dataclass
class Score:
    """How well a prediction agrees with the truth of a picture.

    Args:
        value (float): From 0 to 1.
        told (str): The same in words.
    """

    value: float
    told: str


class TestSet:
    """The pictures and annotations of the test set of a config.

    Args:
        subject (Subject): A model of a config.

    Raises:
        UserError: If the test set is not there.
    """

    def __init__(self, subject: Subject) -> None:
        if subject.cfg is None:
            raise UserError(f'{subject.name!r} has no test set; give pictures')
        cli.check_data(subject.cfg, 'test_dataloader')
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells every step
            dataset = DATASETS.build(subject.cfg.test_dataloader.dataset)
        steps = {type_name(step['type']): step for step in predict.innermost_dataset(subject.cfg).pipeline}
        # Nothing that resizes: predictions are of the size of the file as well.
        kept = {name: step for name, step in steps.items() if name.startswith(('Load', 'Pack'))}
        annotated = any(name.endswith('Annotations') for name in kept)
        self.reader = Compose(list(kept.values())) if annotated else None
        infos = (dataset.get_data_info(i) for i in range(len(dataset)))
        self.infos = {Path(info['img_path']).resolve(): info for info in infos}

    def paths(self, count: int) -> list[str]:
        """Pictures, evenly spread.

        Args:
            count (int): How many, or all if there are fewer.
        """
        paths = [info['img_path'] for info in self.infos.values()]
        count = min(count, len(paths))
        return [paths[i * len(paths) // count] for i in range(count)]

    def truth(self, image: str) -> Any:
        """The toolbox's data sample with the annotations, or None of a picture without any.

        Args:
            image (str): The file.
        """
        info = self.infos.get(Path(image).resolve())
        if info is None or self.reader is None:
            return None
        sample = self.reader(dict(info))['data_samples']
        if not ('gt_instances' in sample or 'gt_sem_seg' in sample):
            return None
        for objects in (sample.get('gt_instances', {}), sample.get('ignored_instances', {})):
            if 'bboxes' in objects:
                objects.bboxes = getattr(objects.bboxes, 'tensor', objects.bboxes)
        sample.set_metainfo(dict(instances=info.get('instances', [])))
        return sample


class Scorer:
    """Compares predictions with the truth, picture by picture and as the toolboxes' metrics do over all.

    Args:
        classes (Sequence[str]): Names of the classes.
        score_thr (float): Score of the detections that count for a single picture, 0 to 1; AP takes all.
        ignore_index (int): Label of the pixels that do not count. Defaults to 255.
    """

    def __init__(self, classes: Sequence[str], score_thr: float, ignore_index: int = 255) -> None:
        self.classes, self.score_thr, self.ignore_index = classes, score_thr, ignore_index
        self.objects: list[tuple[dict, dict]] = []  # truth and prediction of a picture, as mmdet's metric keeps them
        self.areas: list[tuple[torch.Tensor, ...]] = []  # of a picture, as mmseg's metric takes them
        self.counts = Counter()  # of objects that are found, missed and false

    def add(self, sample: Any, truth: Any) -> Score | None:
        """Compare the prediction of a picture with its truth.

        Args:
            sample (Any): The toolbox's data sample with the prediction.
            truth (Any): That with the annotations, both of the size of the file.

        Returns:
            Score | None: How well they agree, or None of what is neither objects nor labels of pixels.
        """
        if 'pred_instances' in sample and 'gt_instances' in truth:
            return self._add_objects(sample, truth)
        if 'pred_sem_seg' in sample and 'gt_sem_seg' in truth:
            return self._add_labels(sample, truth)
        return None

    def _add_labels(self, sample: Any, truth: Any) -> Score:
        from mmseg.evaluation import IoUMetric

        predicted, labels = sample.pred_sem_seg.data.cpu().squeeze(), truth.gt_sem_seg.data.squeeze()
        areas = IoUMetric.intersect_and_union(predicted, labels.to(predicted), len(self.classes), self.ignore_index)
        self.areas.append(areas)
        iou = float((areas[0] / areas[1]).nanmean())  # of the classes in one of both
        return Score(iou, f'mIoU {iou:.3f}') if iou == iou else Score(1.0, 'no labelled pixel')

    def _add_objects(self, sample: Any, truth: Any) -> Score:
        from mmdet.evaluation import CocoMetric
        from mmdet.evaluation.functional.mean_ap import tpfp_default

        found, real, ignored = (
            {key: np.asarray(value.cpu()) for key, value in objects.items() if key in KEYS}
            for objects in (sample.pred_instances, truth.gt_instances, truth.ignored_instances)
        )
        kept = found['scores'] >= self.score_thr
        counts = Counter(found=0, missed=0, false=0)
        for label in {*found['labels'][kept].tolist(), *real['labels'].tolist()}:
            own = kept & (found['labels'] == label)
            boxes = np.hstack([found['bboxes'][own], found['scores'][own, None]])
            wanted = real['bboxes'][real['labels'] == label]
            hits, others = tpfp_default(boxes, wanted, ignored['bboxes'][ignored['labels'] == label], IOU)
            counts.update(found=int(hits.sum()), missed=len(wanted) - int(hits.sum()), false=int(others.sum()))
        self.counts.update(counts)
        metric = CocoMetric()
        metric.process({}, [{**sample.to_dict(), 'img_id': len(self.objects), 'instances': truth.instances}])
        self.objects += metric.results  # masks as run lengths
        agreed, wrong = 2 * counts['found'], counts['missed'] + counts['false']
        told = ', '.join(f'{count} {name}' for name, count in counts.items())
        return Score(agreed / (agreed + wrong) if agreed + wrong else 1.0, told)

    def tables(self) -> list[Table]:
        """What the metrics of the toolboxes say of all pictures so far: in sum, and by class with the worst first."""
        if self.areas:
            return self._tables_of_labels()
        return self._tables_of_objects() if self.objects else []

    def _tables_of_labels(self) -> list[Table]:
        from mmseg.evaluation import IoUMetric

        found, union, predicted, real = (sum(areas) for areas in zip(*self.areas))
        metrics = IoUMetric.total_area_to_metrics(found, union, predicted, real)
        iou, accuracy = metrics['IoU'], metrics['Acc']
        whole = [
            ['mIoU', f'{np.nanmean(iou):.3f}'],
            ['mean accuracy of the classes', f'{np.nanmean(accuracy):.3f}'],
            ['pixel accuracy', f'{metrics["aAcc"]:.3f}'],
        ]
        shares = real / real.sum()
        order = sorted((i for i in range(len(iou)) if union[i]), key=lambda i: iou[i])
        rows = [[self.classes[i], f'{shares[i]:.1%}', f'{iou[i]:.3f}', _number(accuracy[i])] for i in order]
        columns = ['class', 'share of pixels', 'IoU', 'accuracy']
        return [
            Table(f'Labels, {_pictures(self.areas)}', ['metric', 'value'], whole),
            Table('By class, the worst first', columns, rows, self._absent(len(order))),
        ]

    def _tables_of_objects(self) -> list[Table]:
        from mmdet.evaluation import CocoMetric

        measured = {}
        for kind, name in {'bbox': 'box', 'segm': 'mask'}.items():
            if kind == 'segm' and 'masks' not in self.objects[0][1]:
                continue
            metric = CocoMetric(metric=kind, classwise=True)
            metric.dataset_meta = dict(classes=self.classes)
            with contextlib.redirect_stdout(io.StringIO()):
                measured[name, kind] = metric.compute_metrics(self.objects)
        # Without a single detection the metric has nothing to say.
        whole = [
            [f'{name} {label}', f'{max(values.get(f"{kind}_{key}", 0.0), 0.0):.3f}']
            for (name, kind), values in measured.items()
            for key, label in (('mAP', 'AP'), ('mAP_50', 'AP50'), ('mAP_75', 'AP75'))
        ]
        whole += [[f'objects {name}', str(count)] for name, count in self.counts.items()]
        numbers = Counter(
            one['bbox_label'] for truth, _ in self.objects for one in truth['anns'] if not one['ignore_flag']
        )
        rows = []
        for label, number in numbers.items():
            key = f'{self.classes[label]}_precision'
            rows.append([self.classes[label], number, *(float(values.get(key, 0.0)) for values in measured.values())])
        rows.sort(key=lambda row: row[2:])
        texts = [[name, str(number), *map(_number, values)] for name, number, *values in rows]
        columns = ['class', 'objects', *(f'{name} AP' for name, _ in measured)]
        note = f'Found, missed and false: boxes of a score of {self.score_thr} or more, with an IoU of {IOU} or more.'
        return [
            Table(f'Objects, {_pictures(self.objects)}', ['metric', 'value'], whole, note),
            Table('By class, the worst first', columns, texts, self._absent(len(rows))),
        ]

    def _absent(self, present: int) -> str:
        absent = len(self.classes) - present
        return f'{absent} of {len(self.classes)} classes do not occur here.' if absent else ''


def _pictures(measured: Sequence[object]) -> str:
    return f'{len(measured)} pictures' if len(measured) > 1 else '1 picture'


def _number(value: float) -> str:
    return f'{value:.3f}' if value == value else '–'


def describe(sample: Any, part: str, classes: Sequence[str], score_thr: float) -> str:
    """What is in a picture, for those who do not see it.

    Args:
        sample (Any): The toolbox's data sample.
        part (str): ``'pred'`` or ``'gt'``.
        classes (Sequence[str]): Names of the classes.
        score_thr (float): Score of the predicted objects that count, 0 to 1.
    """
    if f'{part}_instances' in sample:
        objects = getattr(sample, f'{part}_instances')
        labels = objects.labels[objects.scores >= score_thr] if part == 'pred' else objects.labels
        parts = [f'{n} {classes[i]}' for i, n in Counter(labels.tolist()).most_common()]
    elif f'{part}_sem_seg' in sample:
        labels = getattr(sample, f'{part}_sem_seg').data.flatten().cpu()
        counts = Counter(dict(zip(*(values.tolist() for values in labels.unique(return_counts=True)))))
        parts = [f'{classes[i]} {n / len(labels):.0%}' for i, n in counts.most_common() if i < len(classes)]
    else:
        return 'as drawn'
    others = [f'{len(parts) - NAMED} more classes'] if len(parts) > NAMED else []
    return ', '.join([*parts[:NAMED], *others]) or 'nothing'
