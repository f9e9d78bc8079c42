"""The matcher of the auxiliary loss against a loop written from the method's text."""

import statistics

import torch
from helpers import make_instances, make_priors, random_boxes, random_instances
from hypothesis import assume, given
from hypothesis import strategies as st
from slow_matching import assign, boxes_of_gt, iou, locations, strictly_inside

from defcn_d2.modeling.matcher.poto_aux import POTOAux
from defcn_d2.structures import BACKGROUND, Predictions, Priors


def make_predictions(priors: Priors, height: int, width: int, seed: int) -> Predictions:
    """Large boxes anywhere, so that many overlap a ground truth and no two qualities are equal."""
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        cls_logits=2 * torch.randn(len(priors), 2, generator=generator),
        boxes=random_boxes(
            height, width, len(priors), generator, min_size=0.4 * min(height, width)
        ),
        # Would change the qualities by a lot, were it looked at.
        quality_logits=10 * torch.randn(len(priors), generator=generator),
    )


def slow_auxiliary(
    priors: Priors, predictions: Predictions, gt, alpha: float, k: int
) -> torch.Tensor:
    points = list(locations(priors))
    probabilities = predictions.cls_logits.double().sigmoid().tolist()
    predicted = predictions.boxes.tolist()
    wishes: dict[int, list[int]] = {}
    qualities = []
    for g, (box, c) in enumerate(zip(boxes_of_gt(gt), gt.gt_classes.tolist(), strict=True)):
        quality = [
            probabilities[r][c] ** (1 - alpha) * iou(box, predicted[r]) ** alpha
            for r in range(len(priors))
        ]
        candidates: list[int] = []
        for level in range(len(priors.level_sizes)):
            of_level = [point.index for point in points if point.level == level]
            candidates += sorted(of_level, key=lambda r: -quality[r])[:k]
        values = [quality[r] for r in candidates]
        threshold = statistics.fmean(values)
        if len(values) > 1:
            threshold += statistics.stdev(values)
        # Equal qualities: a case of no one answer, which other tests look at.
        assume(min(abs(value - threshold) for value in values) > 1e-6 or len(values) == 1)
        wishes[g] = [
            r for r in candidates if quality[r] >= threshold and strictly_inside(points[r], box)
        ]
        qualities.append(quality)
    return assign(len(priors), wishes, qualities)


@given(
    st.sampled_from([(24, 40), (64, 64), (136, 200)]),
    st.integers(1, 8),
    st.integers(0, 2**16),
    st.sampled_from([1, 4, 9]),
    st.sampled_from([0.2, 0.8]),
)
def test_against_a_loop(
    size: tuple[int, int], num_gts: int, seed: int, k: int, alpha: float
) -> None:
    priors = make_priors(*size)
    gt = random_instances(*size, num_gts, num_classes=2, seed=seed)
    predictions = make_predictions(priors, *size, seed=seed)
    assignment = POTOAux(alpha=alpha, topk=k)(priors, predictions, gt)
    assert assignment.quality is None
    expected = slow_auxiliary(priors, predictions, gt, alpha, k)
    assert assignment.gt_idxs.tolist() == expected.tolist()


def test_usually_several_locations_a_ground_truth() -> None:
    priors = make_priors(136, 200)
    gt = make_instances(136, 200, [[10, 10, 90, 120], [100, 20, 190, 130]], [0, 1])
    nearest = (priors.centers[:, 0] > 95).long()
    boxes = gt.gt_boxes.tensor[nearest] + torch.randn(len(priors), 4) * priors.strides[:, None]
    predictions = Predictions(torch.zeros(len(priors), 2), boxes)
    counts = torch.bincount(POTOAux()(priors, predictions, gt).gt_idxs + 1)
    assert counts[1] > 1
    assert counts[2] > 1


def test_candidates_outside_of_the_box_raise_the_threshold() -> None:
    """The spatial prior comes after the threshold: two good locations outside leave none inside."""
    priors = make_priors(8, 32, strides=(8,))
    gt = make_instances(8, 32, [[0, 0, 16, 8]], [0])
    boxes = torch.tensor([[0.0, 0, 16, 8]]).repeat(4, 1)
    good_outside = Predictions(torch.tensor([[-3.0], [-3.0], [3.0], [3.0]]), boxes)
    assert (POTOAux()(priors, good_outside, gt).gt_idxs == BACKGROUND).all()
    good_inside = Predictions(torch.tensor([[3.0], [-3.0], [-3.0], [-3.0]]), boxes)
    assert POTOAux()(priors, good_inside, gt).gt_idxs.tolist() == [0, -1, -1, -1]


def test_empty_predicted_boxes() -> None:
    """All qualities 0: at most k a level, inside of the box."""
    priors = make_priors(64, 64)
    gt = make_instances(64, 64, [[0, 0, 64, 64]], [0])
    predictions = Predictions(torch.zeros(len(priors), 1), priors.centers.repeat(1, 2))
    gt_idxs = POTOAux(topk=9)(priors, predictions, gt).gt_idxs
    per_level = [int((level == 0).sum()) for level in gt_idxs.split(priors.level_sizes)]
    # The single cells of P6 and P7 have their centres at 32 and 64: inside, and on the corner.
    assert per_level == [9, 9, 4, 1, 0]
