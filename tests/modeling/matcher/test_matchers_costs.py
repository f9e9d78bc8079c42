"""Scores and costs of pairs against loops over Python numbers."""

import math

import pytest
import torch
from helpers import make_priors, random_boxes, random_predictions
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import (
    Case,
    area,
    boxes_of_gt,
    cases,
    distance,
    giou,
    iou,
    locations,
)

from defcn_d2.modeling.box_ops import pairwise_giou
from defcn_d2.modeling.matcher import costs
from defcn_d2.modeling.matcher.pairs import AllPairs
from defcn_d2.structures import Predictions

ALPHAS = st.sampled_from([0.25, 0.5])
GAMMAS = st.sampled_from([0.0, 1.0, 2.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def with_quality(case: Case, seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    quality = 2 * torch.randn(len(case.priors), generator=generator)
    return Predictions(case.predictions.cls_logits, case.predictions.boxes, quality)


@given(cases(max_gts=4), st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_class_probability_and_quality(case: Case, seed: int, alpha: float) -> None:
    predictions = with_quality(case, seed)
    logits, filters = predictions.cls_logits.tolist(), predictions.quality_logits.tolist()
    predicted = predictions.boxes.tolist()
    pairs, gt_classes = AllPairs.of(case.gt), case.gt.gt_classes
    for fused in (True, False):
        probability = costs.class_probability(predictions, pairs, fused)
        quality = costs.prediction_quality(predictions, pairs, alpha, fused)
        assert probability.shape == quality.shape == (len(case.gt), len(case.priors))
        for g, (box, c) in enumerate(zip(boxes_of_gt(case.gt), gt_classes.tolist(), strict=True)):
            for r in range(0, len(case.priors), 3):
                p = sigmoid(logits[r][c]) * (sigmoid(filters[r]) if fused else 1)
                expected = p ** (1 - alpha) * iou(box, predicted[r]) ** alpha
                assert probability[g, r].item() == pytest.approx(p, rel=1e-5)
                assert quality[g, r].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_without_a_quality_branch_both_probabilities_are_the_plain_one() -> None:
    predictions = random_predictions(make_priors(32, 32), 3, None, quality=False)
    pairs = AllPairs(torch.zeros(2, 4), torch.tensor([2, 0]))
    plain = costs.class_probability(predictions, pairs, fused=False)
    assert torch.equal(costs.class_probability(predictions, pairs), plain)
    torch.testing.assert_close(plain, predictions.cls_logits[:, [2, 0]].sigmoid().t())


def test_half_precision_predictions_are_scored_in_float32() -> None:
    predictions = random_predictions(make_priors(32, 32), 3, None)
    half = Predictions(
        predictions.cls_logits.bfloat16(),
        predictions.boxes.bfloat16(),
        predictions.quality_logits.bfloat16(),
    )
    boxes = random_boxes(32, 32, 2, torch.Generator().manual_seed(0))
    quality = costs.prediction_quality(half, AllPairs(boxes, torch.tensor([0, 2])), 0.8)
    assert quality.dtype == torch.float32


@given(cases())
def test_distance_and_size(case: Case) -> None:
    gt_boxes = case.gt.gt_boxes.tensor
    nearness = costs.nearness(case.priors, gt_boxes)
    smallness = costs.smallness(case.priors, gt_boxes)
    assert nearness.shape == smallness.shape == (len(case.gt), len(case.priors))
    for g, box in enumerate(boxes_of_gt(case.gt)):
        assert (smallness[g] == -area(box)).all()
        for location in locations(case.priors):
            expected = -distance(location, box)
            assert nearness[g, location.index].item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 5), ALPHAS, GAMMAS, st.booleans())
def test_focal_cost(
    seed: int, num_gts: int, num_classes: int, alpha: float, gamma: float, branch: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(7, num_classes, generator=generator)
    quality = 3 * torch.randn(7, generator=generator)
    gt_classes = torch.randint(num_classes, (num_gts,), generator=generator)
    predictions = Predictions(logits, torch.zeros(7, 4), quality if branch else None)
    pairs = AllPairs(torch.zeros(num_gts, 4), gt_classes)
    cost = costs.focal_cost(predictions, pairs, alpha, gamma)
    for g in range(num_gts):
        for r in range(7):
            expected = 0.0
            for c in range(num_classes):
                p = sigmoid(logits[r, c].item())
                p *= sigmoid(quality[r].item()) if branch else 1
                if c == gt_classes[g]:
                    expected += alpha * (1 - p) ** gamma * -math.log(p)
                else:
                    expected += (1 - alpha) * p**gamma * -math.log(1 - p)
            assert cost[g, r].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), ALPHAS, GAMMAS)
def test_focal_difference_cost(probabilities: list[float], alpha: float, gamma: float) -> None:
    p = torch.tensor([probabilities], dtype=torch.float64)
    cost = costs.focal_difference_cost(p, alpha, gamma)
    for r, value in enumerate(probabilities):
        foreground = alpha * (1 - value) ** gamma * -math.log(value + 1e-8)
        background = (1 - alpha) * value**gamma * -math.log(1 - value + 1e-8)
        assert cost[0, r].item() == pytest.approx(foreground - background, abs=1e-9)


def test_box_costs() -> None:
    generator = torch.Generator().manual_seed(0)
    gt_boxes = random_boxes(40, 60, 4, generator)
    predicted = random_boxes(40, 60, 9, generator)
    overlap = pairwise_giou(gt_boxes, predicted)
    distances = costs.l1_cost(gt_boxes, predicted, image_size=(40, 60))
    for g, a in enumerate(gt_boxes.tolist()):
        for r, b in enumerate(predicted.tolist()):
            assert overlap[g, r].item() == pytest.approx(giou(a, b), abs=1e-5)
            scales = (60, 40, 60, 40)
            expected = sum(abs(x - y) / scale for x, y, scale in zip(a, b, scales, strict=True))
            assert distances[g, r].item() == pytest.approx(expected, abs=1e-5)


def test_scores_take_no_memory_over_all_classes() -> None:
    """With 10,000 classes an (M, R, K) tensor of this case would be 17 GB, and its time minutes."""
    priors = make_priors(256, 256)
    predictions = random_predictions(priors, 10_000, None, quality=False)
    gt_boxes = random_boxes(256, 256, 320, torch.Generator().manual_seed(0))
    quality = costs.prediction_quality(predictions, AllPairs(gt_boxes, torch.arange(320)), 0.8)
    assert quality.shape == (320, len(priors))
