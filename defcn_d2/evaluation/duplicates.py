"""End-to-end figures of any data set in COCO's format: duplicates, recall, NMS ceiling."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from .crowdhuman_metrics import Curve, Sample, duplicate_figures, nms_ceiling
from .results import NO_DETECTIONS, read_results


def coco_samples(annotations: Path, results: Path) -> list[Sample]:
    """Ground truth and detections of each image and category that has either.

    Args:
        annotations: COCO's annotation file; its crowd regions are ignore regions.
        results: detections in COCO's results format, as COCOEvaluator writes them.

    Raises:
        AnnotationError: an entry of ``results`` is wrong.
    """
    truth = json.loads(annotations.read_bytes())
    rows: dict[int, list[list[float]]] = defaultdict(list)
    for label in truth["annotations"]:
        x, y, width, height = label["bbox"]
        crowd, category = label.get("iscrowd", 0), label["category_id"]
        rows[label["image_id"]].append([x, y, x + width, y + height, crowd, category])
    detections = read_results(results, [image["id"] for image in truth["images"]])
    samples = []
    for image in truth["images"]:
        gts = np.array(rows[image["id"]], np.float64).reshape(-1, 6)
        found = detections.get(str(image["id"]), NO_DETECTIONS)
        for category in np.union1d(gts[:, 5], found[:, 5]):
            own_gts, own = gts[gts[:, 5] == category], found[found[:, 5] == category]
            size = image["width"], image["height"]
            samples.append(Sample.build(own_gts[:, :4], own_gts[:, 4], own[:, :4], own[:, 4], size))
    return samples


def coco_figures(annotations: Path, results: Path) -> dict[str, float]:
    """``recall`` and ``nms_ceiling`` in percent, ``duplicates_<score>`` per ground truth.

    All at IoU 0.5 and within each category; see ``crowdhuman_metrics`` for the rules. Arguments and
    errors are those of ``coco_samples``; ValueError where there is no ground truth.
    """
    samples = coco_samples(annotations, results)
    curve = Curve.build(samples)
    return {
        "recall": 100 * curve.recall(),
        "nms_ceiling": 100 * nms_ceiling([sample.positives for sample in samples]),
        **duplicate_figures(curve),
    }
