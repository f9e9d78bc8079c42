"""``DRLoss`` against its formula entry by entry, in float64: value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_class_losses import Case, random_case
from torch import Tensor

from defcn_d2.modeling.loss.dr_loss import DRLoss

NOTHING = torch.zeros(3, 0, dtype=torch.int64)


def literal(case: Case, logits: Tensor, weighted: bool, with_valid: bool) -> Tensor:
    """Sums over the entries one by one, with a gradient by autograd."""
    entries = case.foreground.t().tolist()
    sums = {"foreground": [0.0, 0.0], "background": [0.0, 0.0]}
    images, locations, classes = logits.shape
    for n in range(images):
        for r in range(locations):
            for k in range(classes):
                p = 1 / (1 + (-logits[n, r, k]).exp())
                factor = case.valid[n, r].double() if with_valid else 1.0
                if [n, r, k] in entries:
                    kind, weight = "foreground", (-p).exp()
                    if weighted:
                        factor = factor * case.weights[entries.index([n, r, k])]
                else:
                    kind, weight = "background", (p / (0.1 / math.log(3.5))).exp()
                sums[kind][0] += factor * weight
                sums[kind][1] += factor * weight * p
    (mass, moment), nothing = sums["background"], torch.zeros((), dtype=torch.float64)
    background = moment / mass if mass > 0 else nothing
    (mass, moment) = sums["foreground"]
    foreground = moment / mass if mass > 0 else nothing + 1
    return 4 / 6 * (1 + (6 * (background - foreground + 0.5)).exp()).log()


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3)),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(["", "bool", "float"]),
)
def test_value_and_gradient(
    sizes: tuple[int, int, int], seed: int, weighted: bool, valid_as: str
) -> None:
    case = random_case(sizes, seed, valid_as or "bool")
    ours, theirs = case.logits.clone().requires_grad_(), case.logits.clone().requires_grad_()
    loss = DRLoss()(
        ours,
        case.foreground,
        weights=case.weights if weighted else None,
        valid=case.valid if valid_as else None,
    )
    expected = literal(case, theirs, weighted, bool(valid_as))
    assert loss.count == 1
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    if expected.requires_grad:
        gradients = (
            torch.autograd.grad(x, y)[0] for x, y in ((loss.total, ours), (expected, theirs))
        )
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("logit", [-4.6, 0.0, 2.0])
@pytest.mark.parametrize("count", [1, 7])
def test_equal_probabilities(logit: float, count: int) -> None:
    """(4 / 6) log(1 + e^3), whatever they are and however many."""
    foreground = torch.stack([torch.zeros(count), torch.arange(count), torch.ones(count)]).long()
    loss = DRLoss()(torch.full((2, 9, 3), logit), foreground)
    assert loss.total.item() == pytest.approx(2.032391, rel=1e-6)


def test_closed_forms() -> None:
    logits = torch.tensor([[[0.9, 0.1, 0.3]]]).logit()
    entry = torch.zeros(3, 1, dtype=torch.int64)
    assert DRLoss()(logits, entry).total.item() == pytest.approx(0.270884, abs=1e-6)
    logits = torch.full((2, 3, 4), 0.01).logit()
    assert DRLoss()(logits, NOTHING).total.item() == pytest.approx(0.034344, abs=1e-6)


def test_without_background() -> None:
    """N is 0; the gradient is finite."""
    logits = torch.tensor([[[0.5]]], requires_grad=True)
    loss = DRLoss()(logits, torch.zeros(3, 1, dtype=torch.int64)).total
    expected = 4 / 6 * math.log1p(math.exp(6 * (0.5 - torch.tensor(0.5).sigmoid().item())))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logits.grad.item() < 0


def test_foreground_helps_and_the_hardest_background_hurts() -> None:
    case = random_case((2, 10, 3), 0)
    logits = case.logits.clone().requires_grad_()
    DRLoss()(logits, case.foreground).total.backward()
    own = logits.grad[tuple(case.foreground)]
    assert (own < 0).all()
    background = logits.detach().clone()
    background[tuple(case.foreground)] = -torch.inf
    assert logits.grad.flatten()[background.argmax()] > 0


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_logits(logit: float) -> None:
    logits = torch.full((1, 4, 2), logit, requires_grad=True)
    loss = DRLoss(background_lambda=1e-3)(logits, torch.zeros(3, 1, dtype=torch.int64)).total
    loss.backward()
    assert loss.item() == pytest.approx(2.032391, rel=1e-6) and logits.grad.isfinite().all()
