"""POTO against its definition: scipy over the full matrix of qualities, pair by pair."""

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from helpers import make_instances, make_priors, random_instances, random_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from slow_matching import (
    Case,
    boxes_of_gt,
    cases,
    in_center_region,
    iou,
    locations,
    strictly_inside,
)
from torch import Tensor

from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import BACKGROUND, Predictions, Priors

NOT_ALLOWED = -1.0


def slow_qualities(
    priors: Priors, predictions: Predictions, gt: Instances, alpha: float, radius: float
) -> np.ndarray:
    """(M, R) in float64, -1 where the spatial prior does not allow."""
    probabilities = predictions.cls_logits.double().sigmoid()
    if predictions.quality_logits is not None:
        probabilities = probabilities * predictions.quality_logits.double().sigmoid()[:, None]
    predicted = predictions.boxes.tolist()
    qualities = np.full((len(gt), len(priors)), NOT_ALLOWED)
    for g, (box, c) in enumerate(zip(boxes_of_gt(gt), gt.gt_classes.tolist(), strict=True)):
        for location in locations(priors):
            r = location.index
            if radius:
                allowed = in_center_region(location, box, radius)
            else:
                allowed = strictly_inside(location, box)
            if allowed:
                p = probabilities[r, c].item()
                qualities[g, r] = p ** (1 - alpha) * iou(box, predicted[r]) ** alpha
    return qualities


def pairs_of(gt_idxs: Tensor) -> list[tuple[int, int]]:
    """(ground truth, location); no ground truth twice."""
    priors = torch.nonzero(gt_idxs >= 0).squeeze(1)
    pairs = list(zip(gt_idxs[priors].tolist(), priors.tolist(), strict=True))
    assert len({g for g, _ in pairs}) == len(pairs)
    return sorted(pairs)


def with_filter(case: Case, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    quality = 2 * torch.randn(len(case.priors), generator=generator)
    predictions = Predictions(case.predictions.cls_logits, case.predictions.boxes, quality)
    return Case(case.priors, predictions, case.gt)


@given(cases(), st.integers(0, 99), st.sampled_from([0.0, 1.5]), st.sampled_from([0.0, 0.8, 1.0]))
def test_highest_total_quality(case: Case, seed: int, radius: float, alpha: float) -> None:
    if seed % 2:
        case = with_filter(case, seed)
    qualities = slow_qualities(*case, alpha=alpha, radius=radius)
    rows, columns = linear_sum_assignment(qualities, maximize=True)
    expected = [q for q in qualities[rows, columns] if q != NOT_ALLOWED]

    assignment = POTO(alpha=alpha, radius=radius)(*case)
    assert assignment.quality is None
    values = [qualities[g, r] for g, r in pairs_of(assignment.gt_idxs)]
    assert NOT_ALLOWED not in values
    assert len(values) == len(expected)
    assert sum(values) == pytest.approx(sum(expected), abs=1e-5)


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("num_gts", [1, 10, 60])
@pytest.mark.parametrize("quality", [True, False])
def test_the_same_pairs_as_the_full_matrix(radius: float, num_gts: int, quality: bool) -> None:
    priors = make_priors(96, 128)
    gt = random_instances(96, 128, num_gts, num_classes=3, seed=num_gts)
    predictions = random_predictions(priors, 3, None, quality=quality)
    qualities = slow_qualities(priors, predictions, gt, alpha=0.8, radius=radius)
    rows, columns = linear_sum_assignment(qualities, maximize=True)
    full = list(zip(rows.tolist(), columns.tolist(), strict=True))
    reachable = [(g, r) for g, r in full if qualities[g, r] != NOT_ALLOWED]
    assert pairs_of(POTO(radius=radius)(priors, predictions, gt).gt_idxs) == reachable
    if num_gts == 60:
        assert len(reachable) < len(full)  # some boxes hold no location
    kept = POTO(radius=radius, keep_unreachable=True)(priors, predictions, gt)
    assert pairs_of(kept.gt_idxs) == full


@settings(max_examples=100)
@given(cases(), st.sampled_from([0.0, 1.5]))
def test_before_training_ties_fall_as_in_scipy(case: Case, radius: float) -> None:
    """Empty predicted boxes: every quality is 0, and the order alone decides."""
    corners = case.priors.centers.repeat(1, 2)
    empty = Predictions(case.predictions.cls_logits, corners)
    qualities = slow_qualities(case.priors, empty, case.gt, alpha=0.8, radius=radius)
    assert set(np.unique(qualities)) <= {NOT_ALLOWED, 0.0}
    rows, columns = linear_sum_assignment(qualities, maximize=True)
    full = list(zip(rows.tolist(), columns.tolist(), strict=True))
    reachable = [(g, r) for g, r in full if qualities[g, r] != NOT_ALLOWED]
    assert pairs_of(POTO(radius=radius)(case.priors, empty, case.gt).gt_idxs) == reachable


@given(cases(), st.sampled_from([0.0, 1.5]))
def test_argmax(case: Case, radius: float) -> None:
    qualities = slow_qualities(*case, alpha=0.8, radius=radius).astype(np.float32)
    wishes = {}
    for g, row in enumerate(qualities):
        if row.max() != NOT_ALLOWED:
            wishes[g] = np.flatnonzero(row >= row.max() - 1e-6).tolist()
    pairs = pairs_of(POTO(radius=radius, solver="argmax")(*case).gt_idxs)
    # Each takes one of its best, which rounding may not tell apart ...
    assert all(r in wishes[g] for g, r in pairs)
    matched, taken = {g for g, _ in pairs}, {r: g for g, r in pairs}
    for g in wishes.keys() - matched:
        # ... and goes without it only where a ground truth of no lower quality has it.
        assert any(
            r in taken and qualities[taken[r], r] >= qualities[g, r] - 1e-6 for r in wishes[g]
        )


def test_argmax_drops_the_lower_of_two() -> None:
    priors = make_priors(8, 8, strides=(8,))
    predictions = Predictions(torch.zeros(1, 1), torch.tensor([[0.0, 0, 8, 8]]))
    gt = make_instances(8, 8, [[0, 0, 8, 6], [0, 0, 8, 8], [0, 0, 8, 7]], [0, 0, 0])
    assert POTO(solver="argmax")(priors, predictions, gt).gt_idxs.tolist() == [1]
    assert POTO()(priors, predictions, gt).gt_idxs.tolist() == [1]


def test_argmax_of_equal_locations_takes_the_first() -> None:
    priors = make_priors(64, 64, strides=(8,))
    predictions = Predictions(torch.zeros(64, 1), torch.tensor([[0.0, 0, 64, 64]]).repeat(64, 1))
    gt = make_instances(64, 64, [[0, 0, 64, 64]], [0])
    assignment = POTO(radius=0, solver="argmax")(priors, predictions, gt)
    assert pairs_of(assignment.gt_idxs) == [(0, 0)]


@pytest.mark.parametrize("solver", ["hungarian", "argmax"])
def test_box_without_a_location_stays_unmatched(solver: str) -> None:
    priors = make_priors(64, 64)
    gt = make_instances(64, 64, [[0, 0, 3, 3], [0, 0, 0, 0], [100, 100, 110, 110]], [0, 0, 0])
    predictions = random_predictions(priors, 1, None)
    assignment = POTO(solver=solver)(priors, predictions, gt)
    assert (assignment.gt_idxs == BACKGROUND).all()


@pytest.mark.parametrize("keep_unreachable", [True, False])
def test_more_ground_truths_than_locations(keep_unreachable: bool) -> None:
    priors = make_priors(16, 16)
    gt = make_instances(16, 16, [[0, 0, 16, 16]] * 20, [0] * 20)
    predictions = random_predictions(priors, 1, None)
    assignment = POTO(keep_unreachable=keep_unreachable)(priors, predictions, gt)
    # The centres of levels P5 to P7 lie beyond the box or, at 16, on its side.
    matched = len(priors) if keep_unreachable else 5
    assert len(pairs_of(assignment.gt_idxs)) == matched
