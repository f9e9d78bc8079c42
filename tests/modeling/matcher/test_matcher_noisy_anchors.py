"""``NoisyAnchors`` against loops over ground truths and their candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import make_instances, make_priors
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import (
    Case,
    boxes_of_gt,
    cases,
    iou,
    locations,
    quarter_predictions,
    strictly_inside,
)
from test_matcher_anchor import with_anchors

from defcn_d2.modeling.matcher.noisy_anchors import NoisyAnchors, cleanliness
from defcn_d2.structures import Assignment, Predictions, Priors


def sure(x: float) -> float:
    return 1 / max(1 - x, 1e-6)


def slow_cleanliness(
    fits: list[float], scores: list[float], alpha: float
) -> tuple[list[float], list[float]]:
    count = len(fits)
    mean_fit, mean_score = (max(sum(x) / count, 1e-6) for x in (fits, scores))
    sure_fit, sure_score = (sum(map(sure, x)) / count for x in (fits, scores))
    pairs = list(zip(fits, scores, strict=True))
    clean = [alpha * f / mean_fit + (1 - alpha) * s / mean_score for f, s in pairs]
    low, high, least = min(clean), max(clean), sum(fits) / count
    labels = [least + (1 - least) * (c - low) / max(high - low, 1e-6) for c in clean]
    weights = [alpha * sure(f) / sure_fit + (1 - alpha) * sure(s) / sure_score for f, s in pairs]
    return labels, weights


def literal(
    case: Case, topk: int, alpha: float, warm: bool = False, squares: float = 0
) -> tuple[list[int], dict[int, float], dict[int, float]]:
    """The ground truth of every prior, and labels and weights of the candidates."""
    priors, predictions, boxes = case.priors, case.predictions, boxes_of_gt(case.gt)
    ious = []
    for box in boxes:
        row = []
        for location, anchor in zip(locations(priors), priors.boxes.tolist(), strict=True):
            if squares:
                x, y, reach = location.x, location.y, squares * location.stride / 2
                inside = strictly_inside(location, box)
                row.append(iou(box, (x - reach, y - reach, x + reach, y + reach)) * inside)
            else:
                row.append(iou(box, anchor))
        ious.append(row)
    chosen = []  # a prior once for every ground truth that chose it
    for row in ious:
        ranked = sorted(range(len(row)), key=lambda r: (-row[r], r))
        chosen += [r for r in ranked[:topk] if row[r] > 0]
    gt_idxs = [-1] * len(priors)
    fits, scores = [], []
    probabilities = predictions.scores().double()
    for r in chosen:
        column = [row[r] for row in ious]
        g = gt_idxs[r] = column.index(max(column))
        fits.append(column[g] if warm else iou(boxes[g], predictions.boxes[r].tolist()))
        scores.append(probabilities[r, case.gt.gt_classes[g]].item())
    if not chosen:
        return gt_idxs, {}, {}
    labels, weights = slow_cleanliness(fits, scores, alpha)
    return gt_idxs, dict(zip(chosen, labels)), dict(zip(chosen, weights))


def compare(found: Assignment, expected: tuple) -> None:
    gt_idxs, labels, weights = expected
    assert found.gt_idxs.tolist() == gt_idxs
    for r, g in enumerate(gt_idxs):
        assert found.weights[r].item() == pytest.approx(weights.get(r, 1.0), rel=1e-3)
        if g >= 0:
            assert found.quality[r].item() == pytest.approx(labels[r], abs=1e-3)


@given(cases(), st.sampled_from([1, 4, 30]), st.sampled_from([0.0, 0.75, 1.0]))
def test_anchors(case: Case, topk: int, alpha: float) -> None:
    case = case._replace(priors=with_anchors(case.priors))
    found = NoisyAnchors(topk=topk, alpha=alpha)(*case)
    compare(found, literal(case, topk, alpha))


@given(cases(), st.booleans())
def test_squares_about_locations_inside_the_box(case: Case, warm: bool) -> None:
    """Of the dense form; the IoU is theirs until the warm-up ends."""
    matcher = NoisyAnchors(topk=9, anchor_scale=8.0, warmup=0.5)
    matcher.progress = 0.49 if warm else 0.5
    compare(matcher(*case), literal(case, 9, 0.75, warm, squares=8))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1), st.floats(0, 1))
def test_cleanliness(pairs: list, alpha: float) -> None:
    fits, scores = (list(x) for x in zip(*pairs, strict=True))
    found = cleanliness(*torch.tensor([fits, scores], dtype=torch.float64), alpha)
    for x, expected in zip(found, slow_cleanliness(fits, scores, alpha), strict=True):
        assert x.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_closed_form() -> None:
    labels, weights = cleanliness(torch.tensor([0.9, 0.5]), torch.tensor([0.6, 0.2]), 0.75)
    assert labels.tolist() == pytest.approx([1.0, 0.7])
    assert weights.tolist() == pytest.approx([1.58333, 0.41667], abs=1e-5)


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_invariants(count: int, alpha: float, seed: int) -> None:
    """Weights of mean 1; labels from the mean IoU to 1."""
    generator = torch.Generator().manual_seed(seed)
    fit, scores = 0.98 * torch.rand(2, count, generator=generator)
    labels, weights = cleanliness(fit, scores, alpha)
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    assert labels.min().item() == pytest.approx(fit.mean().item(), abs=1e-5)
    assert count == 1 or labels.max().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_candidates_that_are_all_alike_have_their_iou_as_label(value: float) -> None:
    labels, weights = cleanliness(torch.full((5,), value), torch.full((5,), value), 0.75)
    torch.testing.assert_close(labels, torch.full((5,), value))
    torch.testing.assert_close(weights, torch.ones(5))


def test_no_overlap_at_all_is_background() -> None:
    priors = with_anchors(make_priors(64, 64))
    gt = make_instances(64, 64, [[900, 900, 910, 910]], [0])
    found = NoisyAnchors()(priors, quarter_predictions(priors, seed=0), gt)
    assert (found.gt_idxs == -1).all() and (found.weights == 1).all()


def test_the_score_is_that_of_inference() -> None:
    """With a filter the product, with centerness its root."""
    priors: Priors = with_anchors(make_priors(64, 64))
    gt = make_instances(64, 64, [[4, 4, 36, 36], [10, 8, 60, 50]], [0, 1])
    plain: Predictions = quarter_predictions(priors, seed=0)
    predictions = replace(plain, quality_logits=torch.randn(len(priors)), centerness=True)
    compare(
        NoisyAnchors(topk=5)(priors, predictions, gt),
        literal(Case(priors, predictions, gt), 5, 0.75),
    )
