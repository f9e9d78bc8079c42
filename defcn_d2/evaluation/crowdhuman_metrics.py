"""CrowdHuman's measures over arrays: AP50, mMR, recall, JI, duplicates, NMS gap and ceiling.

The rules are those of CrowdHuman's original evaluation. Boxes are x1, y1, x2, y2 in pixels, without
"+1" in sizes; an image has G boxes of ground truth and D detections. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import nms

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

IOU_THRESH = 0.5  # a detection matches, and a region absorbs, strictly above
NMS_THRESH = 0.6
DUPLICATE_SCORES = (0.05, 0.3, 0.5)
FPPI_REFERENCES = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.000)
JI_SCORES = tuple(i / 10 for i in range(10))
_EPSILON = 1e-6  # in denominators
_SMALLEST_MISS = 1e-10  # instead of ln(0)


@dataclass(frozen=True)
class Sample:
    """An image's ground truth and its detections, these by descending score.

    ``positives`` (G, 4), ``ignored`` (I, 4) regions and ``boxes`` (D, 4) are clipped to the image,
    ``raw_boxes`` (D, 4) are not; ``scores`` (D,).
    """

    positives: Floats
    ignored: Floats
    boxes: Floats
    raw_boxes: Floats
    scores: Floats

    @classmethod
    def build(
        cls,
        gt_boxes: npt.ArrayLike,
        gt_ignored: npt.ArrayLike,
        boxes: npt.ArrayLike,
        scores: npt.ArrayLike,
        size: tuple[int, int],
    ) -> Sample:
        """Clip the boxes and sort the detections, stably.

        Args:
            gt_boxes: (G, 4).
            gt_ignored: (G,), true for ignore regions.
            boxes: (D, 4).
            scores: (D,).
            size: width and height of the image in pixels.
        """
        gts = clip(gt_boxes, size)
        ignored = np.asarray(gt_ignored, bool).reshape(-1)
        raw_boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        values = np.asarray(scores, np.float64).reshape(-1)
        order = np.argsort(-values, kind="stable")
        detections = clip(boxes, size)[order], raw_boxes[order], values[order]
        return cls(gts[~ignored], gts[ignored], *detections)

    def above(self, score: float) -> Sample:
        """The sample with the detections of a score above ``score`` only."""
        return self._with_detections(slice(int((self.scores > score).sum())))

    def suppressed(self, iou_thresh: float = NMS_THRESH) -> Sample:
        """The sample with the detections that NMS leaves."""
        return self._with_detections(suppress(self.raw_boxes, iou_thresh))

    def _with_detections(self, chosen: slice | npt.NDArray[np.int64]) -> Sample:
        detections = self.boxes[chosen], self.raw_boxes[chosen], self.scores[chosen]
        return Sample(self.positives, self.ignored, *detections)


def clip(boxes: npt.ArrayLike, size: tuple[int, int]) -> Floats:
    """Boxes (B, 4) with x1, y1 in [0, W - 1], [0, H - 1] and x2, y2 in [0, W], [0, H]."""
    width, height = size
    limits = (width - 1, height - 1, width, height)
    return np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, limits)


def _intersections(a: Floats, b: Floats) -> Floats:
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return sides.clip(min=0).prod(2)


def _areas(boxes: Floats) -> Floats:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def pairwise_iou(a: Floats, b: Floats) -> Floats:
    """IoU (A, B) of boxes (A, 4) and (B, 4)."""
    shared = _intersections(a, b)
    return shared / (_areas(a)[:, None] + _areas(b)[None] - shared + _EPSILON)


def absorbed(boxes: Floats, regions: Floats) -> Bools:
    """(B,): more than half of a box (B, 4) lies in one of the ignore regions (I, 4)."""
    shares = _intersections(boxes, regions) / (_areas(boxes)[:, None] + _EPSILON)
    return np.asarray((shares > IOU_THRESH).any(1))


def suppress(boxes: Floats, iou_thresh: float) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the boxes (B, 4) that NMS leaves; the first in order is the best."""
    scores = -torch.arange(len(boxes), dtype=torch.float64)
    kept = nms(torch.as_tensor(boxes), scores, iou_thresh)
    return kept.sort().values.numpy()


@dataclass(frozen=True)
class Matches:
    """Outcome of an image's detections, (D,) bool, in their order.

    ``true`` positives, ``false`` positives (neither: absorbed by an ignore region), and
    ``duplicates``: the false ones whose IoU with a matched ground truth is above 0.5. ``gts`` (D,):
    the positive that a true one has found, -1 for the others.
    """

    true: Bools
    false: Bools
    duplicates: Bools
    gts: npt.NDArray[np.int64]


def match(sample: Sample) -> Matches:
    """Greedy: best score first, each with the best still unmatched positive of IoU above 0.5."""
    ious = pairwise_iou(sample.boxes, sample.positives)
    near = (ious > IOU_THRESH).any(1)
    gts = np.full(len(ious), -1)
    free = np.ones(len(sample.positives), bool)
    for detection in np.flatnonzero(near):
        candidates = np.where(free, ious[detection], 0)
        best = candidates.argmax()
        if candidates[best] > IOU_THRESH:
            gts[detection], free[best] = best, False
    true = gts >= 0
    false = ~true & ~absorbed(sample.boxes, sample.ignored)
    # a false positive with a near ground truth found it matched already
    return Matches(true, false, false & near, gts)


@dataclass(frozen=True)
class Curve:
    """The detections of N images pooled, by descending score, without the absorbed ones: (P,) each.

    ``total`` is the number T of positives, ``images`` N, images without positives included.
    """

    scores: Floats
    true: Bools
    duplicates: Bools
    total: int
    images: int

    @classmethod
    def build(cls, samples: Sequence[Sample]) -> Curve:
        """Match every image; raises ValueError where there are no positives at all."""
        total = sum(len(sample.positives) for sample in samples)
        if total == 0:
            raise ValueError(f"the {len(samples)} images have no ground truth that counts")
        columns = []
        for sample in samples:
            matches = match(sample)
            counted = matches.true | matches.false
            columns.append(np.stack([sample.scores, matches.true, matches.duplicates])[:, counted])
        pooled = np.concatenate(columns, axis=1)
        scores, true, duplicates = pooled[:, np.argsort(-pooled[0], kind="stable")]
        return cls(scores, true > 0, duplicates > 0, total, len(samples))

    @property
    def recalls(self) -> Floats:
        """(P,): recall at each detection's score."""
        return np.cumsum(self.true) / self.total

    @property
    def precisions(self) -> Floats:
        """(P,): TP / (TP + FP) at each detection's score."""
        return np.cumsum(self.true) / np.arange(1, len(self.true) + 1)

    @property
    def fppis(self) -> Floats:
        """(P,): false positives per image at each detection's score."""
        return np.cumsum(~self.true) / self.images

    def average_precision(self) -> float:
        """Area under precision over recall: trapezoids, without an envelope."""
        steps, heights = np.diff(self.recalls), self.precisions
        return float((steps * (heights[1:] + heights[:-1]) / 2).sum())

    def log_average_miss_rate(self) -> float:
        """mMR: geometric mean of the miss rates at nine numbers of false positives per image."""
        if not len(self.true):
            return 1.0
        places = np.searchsorted(self.fppis, FPPI_REFERENCES)  # the first that is not below
        misses = 1 - self.recalls[places.clip(max=len(self.true) - 1)]
        return float(np.exp(np.log(misses.clip(min=_SMALLEST_MISS)).mean()))

    def recall(self) -> float:
        """Share of the positives that are found at all."""
        return float(self.true.sum() / self.total)

    def duplicates_per_gt(self, score: float) -> float:
        """Duplicates of a score above ``score`` per positive."""
        return float((self.duplicates & (self.scores > score)).sum() / self.total)


def jaccard_index(samples: Sequence[Sample]) -> float:
    """JI: the mean over images of their ratios, at the score threshold where it is highest."""
    ratios = np.array([[_jaccard(sample.above(t)) for t in JI_SCORES] for sample in samples])
    there = ~np.isnan(ratios)
    means = np.where(there, ratios, 0).sum(0) / there.sum(0).clip(min=1)
    return float(means.max())


def _jaccard(sample: Sample) -> float:
    """Pairs / (detections + positives - pairs) of an image; NaN where there is none of both."""
    ious = pairwise_iou(sample.boxes, sample.positives)
    weights = np.where(ious > IOU_THRESH, ious, 0)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    paired = weights[rows, columns] > 0
    pairs = int(paired.sum())
    single_boxes = np.delete(sample.boxes, rows[paired], 0)
    single_gts = np.delete(sample.positives, columns[paired], 0)
    detections = len(sample.boxes) - absorbed(single_boxes, sample.ignored).sum()
    positives = len(sample.positives) - absorbed(single_gts, sample.ignored).sum()
    if detections == positives == 0:
        return math.nan
    return pairs / (detections + positives - pairs + _EPSILON)


def nms_ceiling(positives: Sequence[Floats], iou_thresh: float = NMS_THRESH) -> float:
    """Recall that is left when NMS is applied to the ground truth itself.

    Args:
        positives: per image (G, 4), clipped. They have no scores: the order of the file decides, an
            earlier box suppresses a later one.
    """
    kept = sum(len(suppress(boxes, iou_thresh)) for boxes in positives)
    total = sum(len(boxes) for boxes in positives)
    return kept / total if total else 1.0


def duplicate_figures(curve: Curve) -> dict[str, float]:
    """``duplicates_<score>``: those above the score, per ground truth."""
    return {f"duplicates_{score}": curve.duplicates_per_gt(score) for score in DUPLICATE_SCORES}


def evaluate(samples: Sequence[Sample]) -> dict[str, float]:
    """All figures by name: AP50, mMR, recall, JI, nms_gap and nms_ceiling in percent.

    ``nms_gap`` is AP50 after NMS at 0.6 of the same detections, less AP50. The figures of
    ``duplicate_figures`` are among them.
    """
    curve = Curve.build(samples)
    ap = curve.average_precision()
    ap_nms = Curve.build([sample.suppressed() for sample in samples]).average_precision()
    figures = {
        "AP50": 100 * ap,
        "mMR": 100 * curve.log_average_miss_rate(),
        "recall": 100 * curve.recall(),
        "JI": 100 * jaccard_index(samples),
        "nms_gap": 100 * (ap_nms - ap),
        "nms_ceiling": 100 * nms_ceiling([sample.positives for sample in samples]),
    }
    return figures | duplicate_figures(curve)
