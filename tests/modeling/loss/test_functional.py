"""Terms of losses against their formulas in probabilities, in float64, and against fvcore."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss as fvcore_giou_loss
from fvcore.nn import smooth_l1_loss
from helpers import random_boxes
from hypothesis import given
from hypothesis import strategies as st

from defcn_d2.modeling.loss.functional import (
    delta_loss,
    distribution_focal_loss,
    focal_negative,
    focal_positive,
    giou_loss,
    l1_loss,
)

ALPHAS = st.sampled_from([0.25, 0.5, 0.9])
GAMMAS = st.sampled_from([0.0, 1.0, 1.5, 2.0])
LOGITS = st.floats(-15, 15, width=32)


def slow_focal(p: float, foreground: bool, alpha: float, gamma: float) -> float:
    if foreground:
        return alpha * (1 - p) ** gamma * -math.log(p)
    return (1 - alpha) * p**gamma * -math.log(1 - p)


@given(LOGITS, ALPHAS, GAMMAS)
def test_focal_terms(logit: float, alpha: float, gamma: float) -> None:
    x = torch.tensor(logit, dtype=torch.float64)
    p = 1 / (1 + math.exp(-logit))
    assert focal_positive(x, alpha, gamma).item() == pytest.approx(
        slow_focal(p, True, alpha, gamma), rel=1e-8
    )
    assert focal_negative(x, alpha, gamma).item() == pytest.approx(
        slow_focal(p, False, alpha, gamma), rel=1e-8
    )


@pytest.mark.parametrize("logit", [-1e4, -200.0, -50.0, 50.0, 200.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_terms_at_extreme_logits(logit: float, gamma: float) -> None:
    x = torch.tensor(logit, requires_grad=True)
    # All of the probability is on one side, so that the loss is 0 or the logit times its factor.
    for loss, factor in (
        (focal_negative(x, 0.25, gamma), 0.75 * max(logit, 0)),
        (focal_positive(x, 0.25, gamma), 0.25 * max(-logit, 0)),
    ):
        assert loss.item() == pytest.approx(factor, rel=1e-6, abs=1e-12)
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.item() == pytest.approx(factor / logit, rel=1e-6, abs=1e-12)


def slow_distribution_focal(logits: list[float], target: float) -> tuple[float, list[float]]:
    """The loss, and its derivatives: the probabilities less those of the target."""
    n = len(logits) - 1
    target = min(max(target, 0.0), n - 0.1)
    largest = max(logits)
    exponentials = [math.exp(x - largest) for x in logits]
    probabilities = [x / sum(exponentials) for x in exponentials]
    i = math.floor(target)
    shares = [0.0] * (n + 1)
    shares[i], shares[i + 1] = i + 1 - target, target - i
    loss = -sum(s * math.log(p) for s, p in zip(shares, probabilities, strict=True) if s)
    return loss, [p - s for p, s in zip(probabilities, shares, strict=True)]


@given(
    st.lists(st.floats(-15, 15, width=32), min_size=2, max_size=17),
    st.one_of(st.floats(-2, 20), st.integers(0, 17).map(float)),
)
def test_distribution_focal_loss(logits: list[float], target: float) -> None:
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss = distribution_focal_loss(x, torch.tensor(target, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, x)
    expected, derivatives = slow_distribution_focal(logits, target)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert gradient.tolist() == pytest.approx(derivatives, rel=1e-9, abs=1e-12)


def test_distribution_focal_loss_in_closed_form() -> None:
    targets = torch.tensor([0.0, 0.37, 8.0, 15.9, 16.0, 40.0], dtype=torch.float64)
    uniform = torch.zeros(len(targets), 17, dtype=torch.float64)
    losses = distribution_focal_loss(uniform, targets)
    assert losses.tolist() == pytest.approx([math.log(17)] * len(targets))  # 2.833213

    # Least where two bins share the target: the entropy of the shares.
    probabilities = torch.full((17,), 1e-30, dtype=torch.float64)
    probabilities[2], probabilities[3] = 0.7, 0.3
    best = probabilities.log().requires_grad_()
    loss = distribution_focal_loss(best, torch.tensor(2.3, dtype=torch.float64))
    assert loss.item() == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3))
    assert torch.autograd.grad(loss, best)[0].abs().max() < 1e-12
    probabilities[2], probabilities[3] = 0.75, 0.25
    loss = distribution_focal_loss(probabilities.log(), torch.tensor(2.25, dtype=torch.float64))
    assert loss.item() == pytest.approx(0.562335, abs=1e-6)
    integer = distribution_focal_loss(probabilities.log(), torch.tensor(3.0, dtype=torch.float64))
    assert integer.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_distribution_focal_loss_at_extreme_logits(size: float) -> None:
    logits = torch.tensor([[size, -size, 0, 0], [0, 0, size, -size]], requires_grad=True)
    losses = distribution_focal_loss(logits, torch.tensor([0.0, 2.25]))
    assert losses.tolist() == pytest.approx([0.0, 0.25 * 2 * size])
    assert torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()


def test_giou_loss_against_fvcore() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, gt_boxes = (random_boxes(100, 100, 50, generator).double() for _ in range(2))
    expected = fvcore_giou_loss(boxes, gt_boxes)
    torch.testing.assert_close(giou_loss(boxes, gt_boxes), expected, rtol=0, atol=1e-6)
    assert giou_loss(gt_boxes, gt_boxes).abs().max() < 1e-6


def test_l1_loss_in_sizes_of_the_image() -> None:
    boxes = torch.tensor([[0.0, 0, 50, 40], [10.0, 20, 30, 40]])
    gt_boxes = torch.tensor([[10.0, 0, 50, 60], [10.0, 20, 30, 40]])
    image_sizes = torch.tensor([[40.0, 100], [64.0, 64]])  # height, width
    assert l1_loss(boxes, gt_boxes, image_sizes).tolist() == pytest.approx([10 / 100 + 20 / 40, 0])


@pytest.mark.parametrize("beta", [0.0, 0.11, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_delta_loss_is_that_of_the_deltas_that_a_head_predicts(beta: float, weights: tuple) -> None:
    """Value and gradient, through the decoded box, of Detectron2's deltas and fvcore's loss.

    Detectron2 decodes boxes in float32.
    """
    generator = torch.Generator().manual_seed(0)
    anchors, gt_boxes = (
        random_boxes(100, 200, 50, generator, min_size=8).double() for _ in range(2)
    )
    deltas = torch.randn(50, 4, generator=generator, dtype=torch.float64).requires_grad_()
    boxes = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)).apply_deltas(deltas, anchors)
    loss = delta_loss(boxes, gt_boxes, anchors, beta, weights)
    transform = Box2BoxTransform(weights=weights)
    targets = transform.get_deltas(anchors, gt_boxes)
    scaled = deltas * torch.tensor(weights, dtype=torch.float64)
    expected = smooth_l1_loss(scaled, targets, beta=beta).sum(dim=1)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    found, wanted = (
        torch.autograd.grad(x.sum(), deltas, retain_graph=True)[0] for x in (loss, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_delta_loss_of_an_empty_box_is_finite() -> None:
    boxes = torch.tensor([[10.0, 10.0, 10.0, 5.0]], requires_grad=True)
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    loss = delta_loss(boxes, anchors, anchors, 0.1, (1.0, 1.0, 1.0, 1.0))
    loss.sum().backward()
    assert loss.isfinite().all() and boxes.grad.isfinite().all()
