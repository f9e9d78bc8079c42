"""``ATSS`` against a loop over ground truths, levels and locations."""

import statistics

import torch
from helpers import make_instances, make_priors
from hypothesis import assume, given
from hypothesis import strategies as st
from slow_matching import (
    Box,
    Case,
    Location,
    assign,
    boxes_of_gt,
    cases,
    centerness,
    distance,
    iou,
    locations,
    quarter_predictions,
    strictly_inside,
)

from defcn_d2.modeling.matcher.atss import ATSS


def anchor(location: Location) -> Box:
    reach = 8 * location.stride / 2
    return location.x - reach, location.y - reach, location.x + reach, location.y + reach


def candidates(own: list[Location], box: Box, k: int) -> list[Location]:
    """The k nearest of a level. Which ones, is left open where the k-th and the next tie."""
    ranked = sorted(own, key=lambda location: distance(location, box))
    if len(ranked) > k:
        assume(distance(ranked[k - 1], box) < distance(ranked[k], box))
    return ranked[:k]


@given(cases(max_gts=6), st.sampled_from([9, 4, 1]))
def test_candidates_above_mean_and_deviation_inside_the_box(case: Case, k: int) -> None:
    boxes = boxes_of_gt(case.gt)
    everywhere = list(locations(case.priors))
    ious = [[iou(box, anchor(location)) for location in everywhere] for box in boxes]
    wishes: dict[int, list[int]] = {}
    for g, box in enumerate(boxes):
        chosen = []
        for level in range(len(case.priors.level_sizes)):
            own = [location for location in everywhere if location.level == level]
            chosen += candidates(own, box, k)
        values = [ious[g][location.index] for location in chosen]
        threshold = statistics.mean(values) + statistics.stdev(values)
        # Rounding may decide otherwise.
        assume(all(value == 0 or abs(value - threshold) > 1e-5 for value in values))
        wishes[g] = [
            location.index
            for location in chosen
            if ious[g][location.index] >= threshold and strictly_inside(location, box)
        ]
    expected = assign(len(case.priors), wishes, better=ious)
    actual = ATSS(topk=k)(case.priors, case.predictions, case.gt)
    assert torch.equal(actual.gt_idxs, expected)

    targets = [
        centerness(location, boxes[expected[location.index]])
        if expected[location.index] >= 0
        else 0
        for location in everywhere
    ]
    torch.testing.assert_close(actual.quality, torch.tensor(targets).float())


def test_a_level_with_fewer_locations_than_candidates_gives_all_it_has() -> None:
    priors = make_priors(32, 32)
    assert min(priors.level_sizes) == 1
    gt = make_instances(32, 32, [[-12, -12, 44, 44]], [0])
    gt_idxs = ATSS(topk=9)(priors, quarter_predictions(priors, seed=0), gt).gt_idxs
    # The anchors of the four locations around the centre, 64 px wide, overlap it most by far.
    assert torch.nonzero(gt_idxs == 0).flatten().tolist() == [5, 6, 9, 10]
