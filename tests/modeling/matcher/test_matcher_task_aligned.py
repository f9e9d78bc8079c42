"""``TaskAligned`` against a loop over ground truths and locations, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import make_instances, make_priors, random_instances, random_predictions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_matching import Case, boxes_of_gt, ciou, distance, locations, strictly_inside

from defcn_d2.modeling.matcher.task_aligned import TaskAligned, soft_targets
from defcn_d2.structures import BACKGROUND, Predictions

SIZES = st.sampled_from([(24, 40), (64, 64), (136, 200)])


def make_case(size: tuple[int, int], num_gts: int, seed: int, quality: bool = False) -> Case:
    """Half of the ground truths are in a heap; one predicted box in five is empty."""
    priors = make_priors(*size)
    gt = random_instances(*size, num_gts, num_classes=3, seed=seed, min_size=6)
    heap = num_gts // 2
    boxes = gt.gt_boxes.tensor
    boxes[:heap] = boxes[0] + 3 * torch.rand(heap, 4) - 1.5
    predictions = random_predictions(priors, 3, None, seed=seed, quality=quality)
    empty = torch.rand(len(priors), generator=torch.Generator().manual_seed(seed)) < 0.2
    predictions.boxes[empty] = priors.centers[empty].repeat(1, 2)
    return Case(priors, predictions, gt)


def apart(values: list[float], margin: float = 1e-3) -> None:
    """Leave out cases that rounding may decide otherwise: next ones in order are too close."""
    ordered = sorted(values, reverse=True)
    assume(all(a - b > margin * abs(a) for a, b in zip(ordered, ordered[1:], strict=False)))


def slow_task_aligned(
    case: Case, alpha: float, beta: float, topk: int, keep: int
) -> tuple[list[int], list[float]]:
    """Ground truth of each location, and the soft label."""
    priors, predictions, gt = case
    p = predictions.cls_logits.double().sigmoid()
    if predictions.quality_logits is not None:
        p = p * predictions.quality_logits.double().sigmoid()[:, None]
    boxes, predicted, points = boxes_of_gt(gt), predictions.boxes.tolist(), list(locations(priors))
    metric: list[dict[int, float]] = []
    overlap: list[dict[int, float]] = []
    wishes: list[list[int]] = []
    for box, c in zip(boxes, gt.gt_classes.tolist(), strict=True):
        inside = [point for point in points if strictly_inside(point, box)]
        plain = {point.index: ciou(predicted[point.index], box) for point in inside}
        assume(all(abs(value) > 1e-4 for value in plain.values()))
        overlap.append({r: max(value, 0.0) for r, value in plain.items()})
        metric.append({r: p[r, c].item() ** alpha * v**beta for r, v in overlap[-1].items()})
        good = sorted((r for r in plain if metric[-1][r] > 0), key=lambda r: -metric[-1][r])
        near = {point.index: distance(point, box) for point in inside}
        rest = sorted((r for r in plain if metric[-1][r] == 0), key=lambda r: near[r])
        apart([metric[-1][r] for r in good[: topk + 1]])
        if len(good) < topk:
            apart([-near[r] for r in rest[: topk - len(good) + 1]])
        wishes.append([*good, *rest][:topk])

    gt_idxs = [BACKGROUND] * len(priors)
    for r in range(len(priors)):
        wanting = [g for g, wish in enumerate(wishes) if r in wish]
        if len(wanting) > 1:
            containing = [g for g in range(len(boxes)) if r in overlap[g]]
            values = [overlap[g][r] for g in containing]
            apart([value for value in values if value > 0])
            gt_idxs[r] = max(containing, key=lambda g: overlap[g][r])  # the first of equal ones
        elif wanting:
            gt_idxs[r] = wanting[0]
    for g in range(len(boxes)) if keep else ():
        own = [r for r, x in enumerate(gt_idxs) if x == g]
        own.sort(key=lambda r: (-metric[g][r], distance(points[r], boxes[g])))
        apart([metric[g][r] for r in own if metric[g][r] > 0])
        for r in own[keep:]:
            gt_idxs[r] = BACKGROUND

    labels = [0.0] * len(priors)
    for g in range(len(boxes)):
        own = [r for r, x in enumerate(gt_idxs) if x == g]
        for r in own:
            highest = max(metric[g][other] for other in own)
            best = max(overlap[g][other] for other in own)
            labels[r] = metric[g][r] / (highest + 1e-9) * best
    return gt_idxs, labels


@settings(max_examples=80)
@given(
    SIZES,
    st.integers(1, 8),
    st.integers(0, 2**16),
    st.sampled_from([(10, 0), (1, 0), (7, 1), (3, 2)]),
    st.sampled_from([(0.5, 6.0), (1.0, 2.0)]),
    st.booleans(),
)
def test_against_a_loop(size, num_gts, seed, numbers, exponents, quality) -> None:
    case = make_case(size, num_gts, seed, quality)
    (topk, keep), (alpha, beta) = numbers, exponents
    expected, labels = slow_task_aligned(case, alpha, beta, topk, keep)
    actual = TaskAligned(alpha=alpha, beta=beta, topk=topk, keep=keep)(*case)
    assert actual.gt_idxs.tolist() == expected
    assert actual.weights is None
    assert actual.quality.tolist() == pytest.approx(labels, rel=2e-3, abs=1e-6)


def test_targets_of_three_locations() -> None:
    p, overlap = torch.tensor([[0.8, 0.5, 0.2]]), torch.tensor([[0.6, 0.9, 0.9]])
    metric = p**0.5 * overlap**6
    assert metric[0].tolist() == pytest.approx([0.041730, 0.375785, 0.237668], abs=1e-6)
    targets = soft_targets(metric, overlap, torch.zeros(3, dtype=torch.int64))
    assert targets.tolist() == pytest.approx([0.09994, 0.9, 0.56921], abs=1e-5)
    nothing = soft_targets(metric, overlap, torch.full((3,), BACKGROUND))
    assert nothing.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_one_to_one_takes_the_best_of_one_to_many(seed: int) -> None:
    """With the same predictions; its label is the CIoU of the box, whatever the probability."""
    priors = make_priors(136, 200)
    gt = make_instances(136, 200, [[9, 11, 81, 102], [101, 13, 190, 127]], [0, 1])
    predictions = random_predictions(priors, 3, None, seed=seed)
    one = TaskAligned(topk=1)(priors, predictions, gt)
    many = TaskAligned(topk=10)(priors, predictions, gt)
    for g in range(2):
        (best,) = (one.gt_idxs == g).nonzero().flatten().tolist()
        own = (many.gt_idxs == g).nonzero().flatten()
        assert len(own) == 10 and best == own[many.quality[own].argmax()]
        overlap = ciou(predictions.boxes[best].tolist(), boxes_of_gt(gt)[g])
        metric = predictions.scores()[best, g].item() ** 0.5 * overlap**6
        assert one.quality[best].item() == pytest.approx(overlap * metric / (metric + 1e-9))


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("topk", [1, 10])
def test_exponents_in_proportion_give_the_same_assignment(factor: float, topk: int) -> None:
    for seed in range(5):
        case = make_case((136, 200), 6, seed)
        expected = TaskAligned(topk=topk)(*case)
        scaled = TaskAligned(alpha=0.5 * factor, beta=6 * factor, topk=topk)(*case)
        assert torch.equal(scaled.gt_idxs, expected.gt_idxs)


def test_conflict_goes_to_the_highest_overlap_although_it_chose_others() -> None:
    """Two of three want the location; the third contains it and fits best."""
    priors = make_priors(16, 16, strides=(8,))  # centres at 4 and 12
    gt = make_instances(16, 16, [[0, 0, 9, 9], [0, 0, 8, 9], [0, 0, 16, 16]], [0, 0, 0])
    boxes = torch.tensor([[0.0, 0, 14, 14], [0, 0, 16, 16], [0, 0, 2, 2], [0, 0, 2, 2]])
    predictions = Predictions(torch.zeros(4, 1), boxes)
    # The third takes location 1, its best; 0 is the only one in the others.
    found = TaskAligned(topk=1)(priors, predictions, gt)
    assert found.gt_idxs.tolist() == [2, 2, -1, -1]
    assert TaskAligned(topk=1, keep=1)(priors, predictions, gt).gt_idxs.tolist() == [-1, 2, -1, -1]
    # Among those that do not contain it nobody is asked.
    apart_gt = make_instances(16, 16, [[0, 0, 9, 9], [0, 0, 8, 9], [5, 0, 16, 16]], [0, 0, 0])
    assert TaskAligned(topk=1)(priors, predictions, apart_gt).gt_idxs[0] == 0


def test_without_any_overlap_the_nearest_locations_have_label_0() -> None:
    case = make_case((64, 64), 1, 0)
    gt = make_instances(64, 64, [[8, 9, 41, 42.5]], [0])
    empty = replace(case.predictions, boxes=case.priors.centers.repeat(1, 2))
    found = TaskAligned(topk=3)(case.priors, empty, gt)
    points = [x for x in locations(case.priors) if strictly_inside(x, [8, 9, 41, 42.5])]
    nearest = sorted(points, key=lambda x: distance(x, [8, 9, 41, 42.5]))[:3]
    assert (found.gt_idxs == 0).nonzero().flatten().tolist() == sorted(x.index for x in nearest)
    assert (found.quality == 0).all()
