"""``OneNet`` against a loop over ground truths and locations, in float64."""

import math

import torch
from detectron2.structures import Instances
from helpers import make_instances, make_priors
from hypothesis import assume, given
from slow_matching import Box, Case, assign, boxes_of_gt, cases, giou, quarter_predictions
from torch import Tensor

from defcn_d2.modeling.matcher.onenet import OneNet


def cost(logit: float, predicted: Box, box: Box, width: int, height: int) -> float:
    p = 1 / (1 + math.exp(-logit))
    class_cost = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
    class_cost -= (1 - 0.25) * p**2 * -math.log(1 - p + 1e-8)
    sides = (width, height, width, height)
    l1 = sum(abs(a / side - b / side) for a, b, side in zip(predicted, box, sides, strict=True))
    return 2 * class_cost + 5 * l1 + 2 * -giou(predicted, box)


@given(cases())
def test_every_gt_takes_its_cheapest_location_and_the_lower_cost_wins_it(case: Case) -> None:
    height, width = case.gt.image_size
    logits, predicted = case.predictions.cls_logits.tolist(), case.predictions.boxes.tolist()
    scores = [
        [-cost(logits[r][c], predicted[r], box, width, height) for r in range(len(case.priors))]
        for box, c in zip(boxes_of_gt(case.gt), case.gt.gt_classes.tolist(), strict=True)
    ]
    wishes = {}
    for g, row in enumerate(scores):
        best, second = sorted(row, reverse=True)[:2]
        assume(best - second > 1e-4)  # rounding may decide otherwise
        wishes[g] = [row.index(best)]
    twins = first_equal(case.gt)
    for g in wishes:
        for other in range(g):
            if wishes[g] == wishes[other] and twins[g] != twins[other]:
                (r,) = wishes[g]
                assume(abs(scores[g][r] - scores[other][r]) > 1e-4)
    expected = assign(len(case.priors), wishes, better=scores)
    actual = OneNet()(case.priors, case.predictions, case.gt).gt_idxs
    # Between equal ground truths the last digit of the cost decides.
    assert torch.equal(twins[actual], twins[expected])


def first_equal(gt: Instances) -> Tensor:
    """(M + 1,) index of the first ground truth with the same box and class; -1 at the end."""
    keys = [(*box, c) for box, c in zip(boxes_of_gt(gt), gt.gt_classes.tolist(), strict=True)]
    return torch.tensor([keys.index(key) for key in keys] + [-1])


def test_coordinates_are_measured_in_sizes_of_the_image_without_padding() -> None:
    priors = make_priors(64, 64)
    predictions = quarter_predictions(priors, seed=0)
    predictions.cls_logits.zero_()
    predictions.boxes[:] = torch.tensor([900.0, 900.0, 901.0, 901.0])
    # 16 px off in x, or 8 px off in y: the second is less in pixels, but more of the height.
    predictions.boxes[5] = torch.tensor([16.0, 0.0, 48.0, 32.0])
    predictions.boxes[6] = torch.tensor([0.0, 16.0, 32.0, 48.0])
    for size, expected in (((32, 64), 5), ((64, 32), 6)):
        gt = make_instances(*size, [[0, 0, 32, 32]], [0])
        gt_idxs = OneNet()(priors, predictions, gt).gt_idxs
        assert torch.nonzero(gt_idxs == 0).tolist() == [[expected]]
