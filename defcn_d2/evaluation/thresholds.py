"""Precision, recall and F1 over the least score, and what is taken for what at one score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .crowdhuman_metrics import Bools, Floats, Sample, match
from .judged import IGNORED, TRUE, Judged

_SIDE = 1 << 20  # no box is cut off at an image's side


@dataclass(frozen=True)
class ScoreCurve:
    """Precision and recall of the detections from each score on, at IoU 0.5.

    Attributes:
        thresholds: (T,) float64, the scores that occur, descending; a detection is kept if its
            score is at least the threshold.
        found: (T,) int64, true positives at each.
        kept: (T,) int64, detections at each.
        objects: number of all.
    """

    thresholds: Floats
    found: np.ndarray
    kept: np.ndarray
    objects: int

    @classmethod
    def build(cls, scores: Floats, true: Bools, objects: int) -> ScoreCurve:
        """The curve of D detections.

        Whether one is true has to depend on better ones alone, as where the best choose first.

        Args:
            scores, true: (D,).
        """
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))  # of equals
        return cls(ordered[last], np.cumsum(true[order])[last], last + 1, objects)

    @property
    def precisions(self) -> Floats:
        """(T,)."""
        return self.found / self.kept

    @property
    def recalls(self) -> Floats:
        """(T,); 0 where there are no objects."""
        return self.found / max(self.objects, 1)

    @property
    def f1(self) -> Floats:
        """(T,): the harmonic mean of both."""
        return 2 * self.found / (self.kept + self.objects)

    def best(self) -> dict[str, float | int | None]:
        """The threshold with the highest F1, the highest if there are several, and what is there.

        Returns:
            ``threshold``, ``f1``, ``precision``, ``recall`` and the number of ``objects``; None
            for what is not defined where nothing is found, of which the F1 is 0.
        """
        if not self.found.any():
            found = {"threshold": None, "f1": 0.0, "precision": None, "recall": None}
            return {**found, "objects": self.objects}
        at = int(self.f1.argmax())
        return {
            "threshold": float(self.thresholds[at]),
            "f1": float(self.f1[at]),
            "precision": float(self.precisions[at]),
            "recall": float(self.recalls[at]),
            "objects": self.objects,
        }

    def precision_at(self, recalls: Floats) -> Floats:
        """The best precision at each of some recalls or more; 0 where it is not reached."""
        envelope = np.append(np.maximum.accumulate(self.precisions[::-1])[::-1], 0.0)
        return envelope[np.searchsorted(self.recalls, recalls)]


def score_curves(judged: Sequence[Judged], num_classes: int) -> list[ScoreCurve]:
    """The curve of all classes together, and after it that of each."""
    scores = np.concatenate([one.scores for one in judged])
    kinds = np.concatenate([one.kinds for one in judged])
    classes = np.concatenate([one.classes for one in judged])
    objects = np.concatenate([one.gt_classes[~one.gt_crowd] for one in judged])
    counts = kinds != IGNORED
    curves = [ScoreCurve.build(scores[counts], kinds[counts] == TRUE, len(objects))]
    for number in range(num_classes):
        own = counts & (classes == number)
        total = int((objects == number).sum())
        curves.append(ScoreCurve.build(scores[own], kinds[own] == TRUE, total))
    return curves


def confusion_matrix(judged: Sequence[Judged], threshold: float, num_classes: int) -> np.ndarray:
    """How often objects of one class are detected as another, from a score on.

    True positives come first. Then the other detections take the objects that are left, whatever
    their classes, at IoU above 0.5, best score first.

    Returns:
        (K + 1, K + 1) int64: a row a class of objects, a column a class of detections. The last
        row has detections of nothing that is left, the last column objects that were missed.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for one in judged:
        kept = one.scores >= threshold
        true = kept & (one.kinds == TRUE)
        np.add.at(matrix, (one.classes[true], one.classes[true]), 1)
        others = np.flatnonzero(kept & (one.kinds != TRUE) & (one.kinds != IGNORED))
        free = ~one.gt_crowd
        free[one.gts[true]] = False
        left = np.flatnonzero(free)
        truth, boxes = (one.gt_boxes[left], np.zeros(len(left), bool)), one.boxes[others]
        sample = Sample.build(*truth, boxes, one.scores[others], (_SIDE, _SIDE))
        gts = match(sample).gts  # (O,), -1: none
        rows = np.append(one.gt_classes[left], num_classes)[gts]
        np.add.at(matrix, (rows, one.classes[others]), 1)
        missed = np.delete(left, gts[gts >= 0])
        np.add.at(matrix[:, num_classes], one.gt_classes[missed], 1)
    return matrix
