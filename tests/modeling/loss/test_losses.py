"""Losses against their formulas in probabilities, in float64, and against fvcore."""

import math

import pytest
import torch
from fvcore.nn import giou_loss as fvcore_giou_loss
from fvcore.nn import sigmoid_focal_loss
from helpers import random_boxes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2.modeling.loss.functional import (
    focal_loss,
    focal_negative,
    focal_positive,
    giou_loss,
    l1_loss,
)
from defcn_d2.structures import fuse_logits

ALPHAS = st.sampled_from([0.25, 0.5, 0.9])
GAMMAS = st.sampled_from([0.0, 1.0, 1.5, 2.0])
LOGITS = st.floats(-15, 15, width=32)


def slow_focal(p: float, foreground: bool, alpha: float, gamma: float) -> float:
    if foreground:
        return alpha * (1 - p) ** gamma * -math.log(p)
    return (1 - alpha) * p**gamma * -math.log(1 - p)


def one_hot(logits: Tensor, foreground: Tensor) -> Tensor:
    target = torch.zeros_like(logits)
    target[foreground[0], foreground[1]] = 1
    return target


def random_case(num_locations: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits in float64, and foreground entries, each once, some locations with two classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_locations, num_classes, generator=generator).double()
    entries = torch.randperm(logits.numel(), generator=generator)[: logits.numel() // 4]
    return logits, torch.stack([entries // num_classes, entries % num_classes])


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


@given(st.integers(0, 99), st.integers(1, 7), st.integers(1, 5), ALPHAS, GAMMAS, st.booleans())
def test_focal_loss_is_the_sum_of_its_terms(
    seed: int, num_locations: int, num_classes: int, alpha: float, gamma: float, masked: bool
) -> None:
    logits, foreground = random_case(num_locations, num_classes, seed)
    target = one_hot(logits, foreground)
    valid = torch.ones(num_locations, dtype=torch.bool)
    if masked:  # an ignored location is never foreground
        valid[seed % 2 :: 2] = False
        valid |= target.any(dim=1)
    expected = sum(
        slow_focal(torch.sigmoid(logits[r, c]).item(), bool(target[r, c]), alpha, gamma)
        for r in range(num_locations)
        for c in range(num_classes)
        if valid[r]
    )
    loss = focal_loss(logits, foreground, alpha, gamma, valid if masked else None)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_and_gradient_against_fvcore(gamma: float) -> None:
    logits, foreground = random_case(50, 7)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = focal_loss(ours, foreground, 0.25, gamma)
    expected = sigmoid_focal_loss(
        theirs, one_hot(logits, foreground), alpha=0.25, gamma=gamma, reduction="sum"
    )
    # fvcore computes in float32.
    torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_focal_loss_without_foreground() -> None:
    logits = torch.randn(6, 3)
    loss = focal_loss(logits, torch.zeros(2, 0, dtype=torch.int64), 0.25, 2.0)
    torch.testing.assert_close(loss, focal_negative(logits, 0.25, 2.0).sum())


def test_focal_loss_of_fused_logits_is_that_of_the_product_of_probabilities() -> None:
    classes, foreground = random_case(40, 4)
    quality = 3 * torch.randn(40, 1, dtype=torch.float64)
    p = classes.sigmoid() * quality.sigmoid()
    target = one_hot(p, foreground).bool()
    expected = torch.where(
        target, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    ).sum()
    loss = focal_loss(fuse_logits(classes.float(), quality.float()), foreground, 0.25, 2.0)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)


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
