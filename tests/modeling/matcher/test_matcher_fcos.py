"""``FCOS`` against a loop over ground truths and locations."""

import math

import pytest
import torch
from helpers import make_instances, make_priors
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import (
    Case,
    area,
    assign,
    boxes_of_gt,
    cases,
    centerness,
    in_center_region,
    in_size_range,
    locations,
    quarter_predictions,
    strictly_inside,
)

from defcn_d2.modeling.matcher.fcos import FCOS

RANGES: list = [[-1, 64], [64, 128], [128, 256], [256, 512], [512, math.inf]]


@given(cases(), st.sampled_from([1.5, 0.0]))
def test_locations_near_the_centre_of_the_smallest_gt_of_the_levels_size(
    case: Case, radius: float
) -> None:
    boxes = boxes_of_gt(case.gt)
    wishes = {
        g: [
            location.index
            for location in locations(case.priors)
            if in_size_range(location, box, RANGES)
            and (
                in_center_region(location, box, radius)
                if radius
                else strictly_inside(location, box)
            )
        ]
        for g, box in enumerate(boxes)
    }
    smallness = [[-area(box)] * len(case.priors) for box in boxes]
    expected = assign(len(case.priors), wishes, better=smallness)
    actual = FCOS(radius=radius)(case.priors, case.predictions, case.gt)
    assert torch.equal(actual.gt_idxs, expected)

    targets = [
        centerness(location, boxes[expected[location.index]])
        if expected[location.index] >= 0
        else 0
        for location in locations(case.priors)
    ]
    torch.testing.assert_close(actual.quality, torch.tensor(targets).float())


@pytest.mark.parametrize(("below", "above"), [(0, 1), (1, 0)])
def test_ranges_include_both_ends(below: int, above: int) -> None:
    priors = make_priors(128, 128)
    # The longest distance is 64 px from (60, 60), a location of P3, and 72 px from three of P4:
    # (56, 72), (72, 56) and (72, 72).
    gt = make_instances(128, 128, [[0, 0, 124, 124]], [0])
    predictions = quarter_predictions(priors, seed=0)
    ranges = [[64 - below, 64 + above], [72 - below, 72 + above], *[[1e4, 1e5]] * 3]
    levels = FCOS(size_ranges=ranges)(priors, predictions, gt).gt_idxs.split(priors.level_sizes)
    assert [(level >= 0).sum().item() for level in levels] == [1, 3, 0, 0, 0]
