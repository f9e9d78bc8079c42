"""``ForegroundLoss`` against the dense cost matrix in float64 and scipy's solver."""

import math

import numpy as np
import pytest
import torch
from helpers import make_instances, make_priors
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from slow_matching import (
    NUM_CLASSES,
    Case,
    boxes_of_gt,
    cases,
    giou,
    in_center_region,
    locations,
    quarter_predictions,
)

from defcn_d2.modeling.matcher import functional
from defcn_d2.modeling.matcher.foreground_loss import ForegroundLoss
from defcn_d2.structures import Predictions


def focal(logits: list[float], gt_class: int) -> float:
    """Sum over the classes, against the one-hot of the ground truth's class."""
    total = 0.0
    for c, logit in enumerate(logits):
        p = 1 / (1 + math.exp(-logit))
        if c == gt_class:
            total += 0.25 * (1 - p) ** 2 * -math.log(p)
        else:
            total += 0.75 * p**2 * -math.log(1 - p)
    return total


def dense_costs(case: Case) -> np.ndarray:
    """(M, R) as in the spec, 1e8 where the spatial prior does not allow."""
    logits, predicted = case.predictions.cls_logits.tolist(), case.predictions.boxes.tolist()
    costs = np.full((len(case.gt), len(case.priors)), 1e8)
    classes = case.gt.gt_classes.tolist()
    for g, box in enumerate(boxes_of_gt(case.gt)):
        for location in locations(case.priors):
            if in_center_region(location, box, radius=1.5):
                r = location.index
                loss = 1 - giou(predicted[r], box)
                costs[g, r] = focal(logits[r], classes[g]) + 2 * loss
    return costs


@given(cases())
def test_lowest_total_cost_of_all_that_can_be_matched(case: Case) -> None:
    costs = dense_costs(case)
    rows, columns = linear_sum_assignment(costs)
    best = [value for value in costs[rows, columns] if value < 1e8]

    gt_idxs = ForegroundLoss()(case.priors, case.predictions, case.gt).gt_idxs
    matched = torch.nonzero(gt_idxs >= 0).squeeze(1)
    gts = gt_idxs[matched]
    assert len(torch.unique(gts)) == len(gts) == len(best)
    actual = costs[gts.numpy(), matched.numpy()]
    assert (actual < 1e8).all()
    assert actual.sum() == pytest.approx(sum(best), abs=1e-5)


@given(cases(max_gts=4), st.booleans())
def test_keep_unreachable_adds_a_location_for_the_rest(case: Case, crowd: bool) -> None:
    if crowd:  # more ground truths than locations
        case = Case(case.priors, case.predictions, type(case.gt).cat([case.gt] * 12))
    gt_idxs = ForegroundLoss(keep_unreachable=True)(case.priors, case.predictions, case.gt).gt_idxs
    gts = gt_idxs[gt_idxs >= 0]
    assert len(torch.unique(gts)) == len(gts) == min(len(case.gt), len(case.priors))
    # Those that can be matched are matched as well as without the rest.
    costs = dense_costs(case)
    matched = torch.nonzero(gt_idxs >= 0).squeeze(1)
    actual = costs[gts.numpy(), matched.numpy()]
    rows, columns = linear_sum_assignment(costs)
    expected = costs[rows, columns]
    assert (actual == 1e8).sum() == (expected == 1e8).sum()
    assert actual[actual < 1e8].sum() == pytest.approx(expected[expected < 1e8].sum(), abs=1e-5)


def test_more_pairs_win_over_cheaper_ones() -> None:
    # Two boxes of which the second has only the location that is by far the best of the first:
    # POTO's rule, by which a pair of cost 2 or more is worth nothing, would drop it.
    priors = make_priors(16, 16, strides=[8])
    gt = make_instances(16, 16, [[0, 0, 16, 16], [1, 1, 7, 7]], [0, 0])
    logits = torch.full((len(priors), NUM_CLASSES), -50.0)
    logits[0, 0] = 50.0
    boxes = torch.tensor([[100.0, 100.0, 101.0, 101.0]]).repeat(len(priors), 1)
    boxes[0] = torch.tensor([0.0, 0.0, 16.0, 16.0])
    gt_idxs = ForegroundLoss()(priors, Predictions(logits, boxes), gt).gt_idxs
    assert gt_idxs[0] == 1
    assert (gt_idxs == 0).sum() == 1


def test_digits_of_the_costs_survive_beside_the_cost_of_no_match() -> None:
    # Beside 1e8, float32 does not tell these costs apart.
    priors = make_priors(16, 16, strides=[8])
    gt = make_instances(16, 16, [[0, 0, 16, 16]], [0])
    predictions = quarter_predictions(priors, seed=0)
    predictions.boxes[:] = torch.tensor([0.0, 0.0, 16.0, 16.0])
    predictions.cls_logits[:] = torch.tensor([0.0, 0.0, 0.0])
    predictions.cls_logits[2, 0] = 1e-4
    assert ForegroundLoss()(priors, predictions, gt).gt_idxs.tolist() == [-1, -1, 0, -1]


@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([-1e8, -100.0, -21.0, -11.0, -10.5, -10.0]),
    st.integers(0, 2**16),
)
def test_hungarian_equals_the_dense_problem_whatever_a_missing_pair_costs(
    num_gts: int, num_priors: int, unmatched: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = -10 * torch.rand(num_gts, num_priors, generator=generator)
    mask = torch.rand(num_gts, num_priors, generator=generator) < 0.4
    gt_idxs = functional.hungarian(score, mask, unmatched)
    priors = torch.nonzero(gt_idxs >= 0).squeeze(1)
    gts = gt_idxs[priors]
    assert mask[gts, priors].all()
    assert len(torch.unique(gts)) == len(gts)

    dense = np.where(mask.numpy(), score.double().numpy(), unmatched)
    rows, columns = linear_sum_assignment(dense, maximize=True)
    best = (dense[rows, columns] - unmatched)[mask.numpy()[rows, columns]]
    actual = score[gts, priors].double() - unmatched
    # The number of pairs first, which the digits of a large total would hide.
    if unmatched < -1000:
        assert len(actual) == len(best)
    expected = pytest.approx(best.sum(), rel=0, abs=1e-6)
    assert actual.sum().item() == expected
