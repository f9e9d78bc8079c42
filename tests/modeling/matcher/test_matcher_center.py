"""``Center`` against a loop over ground truths, levels and locations."""

import math

import pytest
import torch
from helpers import make_instances, make_priors
from hypothesis import given
from slow_matching import (
    Case,
    area,
    assign,
    boxes_of_gt,
    cases,
    distance,
    in_size_range,
    locations,
    quarter_predictions,
)

from defcn_d2.modeling.matcher.center import Center

RANGES: list = [[-1, 64], [64, 128], [128, 256], [256, 512], [512, math.inf]]


@given(cases())
def test_every_gt_takes_the_nearest_location_of_each_suitable_level(case: Case) -> None:
    boxes = boxes_of_gt(case.gt)
    wishes: dict[int, list[int]] = {}
    for g, box in enumerate(boxes):
        wishes[g] = []
        for level in range(len(RANGES)):
            own = [location for location in locations(case.priors) if location.level == level]
            nearest = min(own, key=lambda location: distance(location, box))
            if in_size_range(nearest, box, RANGES):
                wishes[g].append(nearest.index)
    smallness = [[-area(box)] * len(case.priors) for box in boxes]
    expected = assign(len(case.priors), wishes, better=smallness)
    actual = Center()(case.priors, case.predictions, case.gt)
    assert torch.equal(actual.gt_idxs, expected)


@pytest.mark.parametrize(("below", "above"), [(0, 1), (1, 0)])
def test_ranges_include_both_ends(below: int, above: int) -> None:
    priors = make_priors(128, 128)
    # The longest distance is 68 px from (60, 60), a location of P3, and 72 px from (56, 56) of P4.
    gt = make_instances(128, 128, [[0, 0, 120, 128]], [0])
    ranges = [[68 - below, 68 + above], [72 - below, 72 + above], *[[1e4, 1e5]] * 3]
    gt_idxs = Center(size_ranges=ranges)(priors, quarter_predictions(priors, seed=0), gt).gt_idxs
    levels = gt_idxs.split(priors.level_sizes)
    assert [torch.nonzero(level == 0).flatten().tolist() for level in levels] == [
        [7 * 16 + 7],
        [3 * 8 + 3],
        [],
        [],
        [],
    ]


def test_one_range_a_level() -> None:
    priors = make_priors(64, 64)
    gt = make_instances(64, 64, [[0, 0, 8, 8]], [0])
    with pytest.raises(ValueError, match="SIZE_RANGES has 4 ranges for 5 levels"):
        Center(size_ranges=RANGES[:4])(priors, quarter_predictions(priors, seed=0), gt)
