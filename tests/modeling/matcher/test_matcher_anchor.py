"""``Anchor`` against a loop over ground truths and anchors."""

import torch
from helpers import make_instances, make_priors
from hypothesis import given
from slow_matching import Case, assign, boxes_of_gt, cases, iou, quarter_predictions

from defcn_d2.modeling.matcher.anchor import Anchor
from defcn_d2.structures import Priors


def with_anchors(priors: Priors) -> Priors:
    """The same locations with anchors of side 32, 64, ... as in ``configs/Anchor.yaml``."""
    reach = 2 * priors.strides[:, None]
    boxes = torch.cat([priors.centers - reach, priors.centers + reach], dim=1)
    return Priors(boxes, priors.strides, priors.level_sizes)


@given(cases())
def test_every_gt_takes_its_best_anchor_and_the_higher_iou_wins_it(case: Case) -> None:
    priors = with_anchors(case.priors)
    anchors = priors.boxes.tolist()
    ious = [[iou(box, anchor) for anchor in anchors] for box in boxes_of_gt(case.gt)]
    wishes = {g: [row.index(max(row))] for g, row in enumerate(ious)}
    expected = assign(len(priors), wishes, better=ious)
    actual = Anchor()(priors, case.predictions, case.gt)
    assert torch.equal(actual.gt_idxs, expected)
    assert actual.quality is None


def test_a_contested_anchor_leaves_the_other_gt_without() -> None:
    priors = with_anchors(make_priors(64, 64))
    gt = make_instances(64, 64, [[4, 4, 34, 34], [4, 4, 36, 36]], [0, 1])
    gt_idxs = Anchor()(priors, quarter_predictions(priors, seed=0), gt).gt_idxs
    # The anchor of the cell at (20, 20) is [4, 4, 36, 36].
    assert gt_idxs[2 * 8 + 2] == 1
    assert (gt_idxs >= 0).sum() == 1
