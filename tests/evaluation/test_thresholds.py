"""Curves over the least score and the confusion matrix against slow counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defcn_d2.evaluation.crowdhuman_metrics import pairwise_iou
from defcn_d2.evaluation.judged import IGNORED, judge
from defcn_d2.evaluation.thresholds import ScoreCurve, confusion_matrix, score_curves

FEW_SCORES = st.sampled_from([0.1, 0.3, 0.30000000000000004, 0.5, 0.9])  # many are equal
DETECTIONS = st.lists(st.tuples(FEW_SCORES | st.floats(0, 1), st.booleans()), max_size=12)


def counts(detections, threshold):
    """True positives and detections with a score of at least the threshold."""
    kept = [true for score, true in detections if score >= threshold]
    return sum(kept), len(kept)


@given(DETECTIONS, st.integers(0, 5))
def test_every_score_is_counted_as_a_threshold(detections, missed):
    objects = sum(true for _, true in detections) + missed
    scores = np.array([score for score, _ in detections])
    true = np.array([true for _, true in detections], bool)
    curve = ScoreCurve.build(scores, true, objects)
    expected = sorted({score for score, _ in detections}, reverse=True)
    assert curve.thresholds.tolist() == expected
    best = 0.0
    for i, threshold in enumerate(expected):
        found, kept = counts(detections, threshold)
        assert (curve.found[i], curve.kept[i]) == (found, kept)
        precision, recall = found / kept, found / max(objects, 1)
        f1 = 2 * precision * recall / (precision + recall) if found else 0.0
        assert curve.f1[i] == pytest.approx(f1)
        best = max(best, f1)
    point = curve.best()
    assert point["f1"] == pytest.approx(best) and point["objects"] == objects
    if best == 0:
        assert point["threshold"] is point["precision"] is point["recall"] is None
        return
    found, kept = counts(detections, point["threshold"])
    assert point["precision"] == found / kept and point["recall"] == found / objects
    higher = [t for t in expected if t > point["threshold"]]
    assert all(2 * counts(detections, t)[0] / (counts(detections, t)[1] + objects) < best - 1e-12
               for t in higher)  # fmt: skip


@given(DETECTIONS, st.integers(0, 5))
def test_precision_at_a_recall_is_the_best_of_there_and_beyond(detections, missed):
    objects = sum(true for _, true in detections) + missed
    scores = np.array([score for score, _ in detections])
    curve = ScoreCurve.build(scores, np.array([t for _, t in detections], bool), objects)
    at = np.linspace(0, 1, 11)
    for recall, precision in zip(at, curve.precision_at(at), strict=True):
        there = [p for r, p in zip(curve.recalls, curve.precisions, strict=True) if r >= recall]
        assert precision == max(there, default=0.0)


def random_image(seed, num_classes=3):
    """Objects, a crowd region, and detections near them or not, with few different scores."""
    rng = np.random.default_rng(seed)
    objects, detections = rng.integers(0, 6), rng.integers(0, 12)
    corners = rng.integers(0, 40, (objects, 2)).astype(float)
    gts = np.concatenate([corners, corners + rng.integers(8, 30, (objects, 2))], axis=1)
    near = gts[rng.integers(0, objects, detections)] if objects else np.zeros((detections, 4))
    boxes = near + rng.normal(0, 3, (detections, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1).clip(min=1)
    boxes = boxes.clip(min=0)
    truth = gts, rng.integers(0, num_classes, objects), rng.random(objects) < 0.2
    scores = rng.integers(1, 6, detections) / 5
    return judge("a.png", *truth, boxes, scores, rng.integers(0, num_classes, detections))


def slow_confusion(images, threshold, num_classes):
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for one in images:
        ious = pairwise_iou(one.boxes, one.gt_boxes)
        free = {g for g in range(len(one.gt_boxes)) if not one.gt_crowd[g]}
        kept = [i for i in range(len(one.scores)) if one.scores[i] >= threshold]
        for same in (True, False):  # the right class first
            for i in list(kept):
                if one.kinds[i] == IGNORED:
                    kept.remove(i)
                    continue
                near = [g for g in sorted(free) if ious[i, g] > 0.5]
                if same:
                    near = [g for g in near if one.gt_classes[g] == one.classes[i]]
                if near:
                    taken = max(near, key=lambda g: ious[i, g])
                    matrix[one.gt_classes[taken], one.classes[i]] += 1
                    free.remove(taken)
                    kept.remove(i)
        for i in kept:
            matrix[num_classes, one.classes[i]] += 1
        for g in free:
            matrix[one.gt_classes[g], num_classes] += 1
    return matrix


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=4), st.sampled_from([0.0, 0.4, 0.8]))
def test_confusion_matrix_against_a_slow_one(seeds, threshold):
    images = [random_image(seed) for seed in seeds]
    matrix = confusion_matrix(images, threshold, 3)
    np.testing.assert_array_equal(matrix, slow_confusion(images, threshold, 3))
    objects = sum(int((~one.gt_crowd).sum()) for one in images)
    assert matrix[:3].sum() == objects
    overall, *each = score_curves(images, 3)
    assert overall.objects == objects == sum(curve.objects for curve in each)
    place = np.flatnonzero(overall.thresholds >= threshold)
    found, kept = (overall.found, overall.kept) if len(place) else ([0], [0])
    last = place[-1] if len(place) else 0
    assert np.trace(matrix[:3, :3]) == found[last] and matrix[:, :3].sum() == kept[last]


def test_a_crowd_region_counts_for_nothing():
    boxes = np.array([[0.0, 0, 20, 20], [2, 2, 6, 6]])
    one = judge("a", np.array([[0.0, 0, 20, 20]]), np.array([0]), np.array([True]), boxes,
                np.array([0.9, 0.8]), np.array([0, 0]))  # fmt: skip
    assert confusion_matrix([one], 0.0, 1).sum() == 0
    assert score_curves([one], 1)[0].best()["threshold"] is None
