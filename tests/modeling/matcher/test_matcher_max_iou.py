"""``MaxIoU`` against a loop over anchors."""

import torch
from helpers import make_instances, make_priors
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import Case, boxes_of_gt, cases, iou, quarter_predictions
from test_matcher_anchor import with_anchors

from defcn_d2.modeling.matcher.max_iou import MaxIoU


@given(cases(), st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.3)]))
def test_thresholds_and_the_best_anchors_of_each_gt(case: Case, limits: tuple) -> None:
    foreground, background = limits
    priors = with_anchors(case.priors)
    anchors, boxes = priors.boxes.tolist(), boxes_of_gt(case.gt)
    ious = [[iou(box, anchor) for anchor in anchors] for box in boxes]
    expected = []
    for r in range(len(anchors)):
        column = [row[r] for row in ious]
        best = max(column)
        if best >= foreground or any(0 < row[r] == max(row) for row in ious):
            expected.append(column.index(best))
        else:
            expected.append(-1 if best < background else -2)
    matcher = MaxIoU(foreground_iou=foreground, background_iou=background)
    assert matcher(priors, case.predictions, case.gt).gt_idxs.tolist() == expected


def test_a_gt_without_overlap_is_no_anchors_best() -> None:
    priors = with_anchors(make_priors(64, 64))
    gt = make_instances(64, 64, [[4, 4, 36, 36], [900, 900, 910, 910]], [0, 1])
    gt_idxs = MaxIoU()(priors, quarter_predictions(priors, seed=0), gt).gt_idxs
    assert (gt_idxs == 0).any() and not (gt_idxs == 1).any()
    assert torch.isin(gt_idxs, torch.tensor([-2, -1, 0])).all()
