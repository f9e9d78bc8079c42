"""``APLoss`` against two loops over all pairs of entries, in float64: value and gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2.modeling.loss import ap_loss
from defcn_d2.modeling.loss.ap_loss import APLoss, steps_over

DELTAS = st.sampled_from([0.5, 1.0, 2.0])


def step(x: float, delta: float) -> float:
    return min(max(x / (2 * delta) + 0.5, 0), 1)


def literal(
    positives: list[float], negatives: list[float], delta: float, factors: list[float] | None = None
) -> tuple[float, list[float], list[float]]:
    """The sum of the errors, and the gradients of the positives and of the negatives."""
    factors = factors or [1.0] * len(positives)
    before, precisions = {}, {}
    for i, own in enumerate(positives):
        others = positives[:i] + positives[i + 1 :]
        rank = 1 + sum(step(other - own, delta) for other in others)
        before[i] = sum(step(other - own, delta) for other in negatives)
        precisions[i] = rank / (rank + before[i])
    total, of_positives, of_negatives = 0.0, [], [0.0] * len(negatives)
    for i, own in enumerate(positives):
        best = max(precisions[k] for k, other in enumerate(positives) if other <= own)
        error = factors[i] * (1 - best)
        total += error
        of_positives.append(-error)
        for j, other in enumerate(negatives):
            if before[i]:
                of_negatives[j] += error * step(other - own, delta) / before[i]
    return total, of_positives, of_negatives


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, R, K), many of them equal or apart by 2 delta, foreground, and what counts."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3)))
    number = shape[0] * shape[1] * shape[2]
    values = st.integers(-8, 8).map(lambda x: x / 2) | st.floats(-4, 4, width=32)
    drawn = draw(st.lists(values, min_size=number, max_size=number))
    logits = torch.tensor(drawn, dtype=torch.float64).view(shape)
    entries = draw(st.sets(st.sampled_from(list(itertools.product(*map(range, shape))))))
    foreground = torch.tensor(sorted(entries), dtype=torch.int64).view(-1, 3).t()
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=number, max_size=number)))
    valid = valid.view(shape)[..., 0].clone()
    valid[foreground[0], foreground[1]] = True
    return logits, foreground, valid


def compare(
    logits: Tensor, foreground: Tensor, valid: Tensor, delta: float, weights: Tensor | None = None
) -> None:
    is_positive = torch.zeros_like(logits, dtype=torch.bool)
    is_positive[tuple(foreground)] = True
    is_negative = ~is_positive & (valid != 0)[..., None]
    factors = torch.ones(foreground.shape[1], dtype=torch.float64) if weights is None else weights
    if valid.is_floating_point():
        factors = factors * valid[foreground[0], foreground[1]]
    total, of_positives, of_negatives = literal(
        logits[tuple(foreground)].tolist(), logits[is_negative].tolist(), delta, factors.tolist()
    )
    logits = logits.mT.contiguous().mT.requires_grad_()  # as a head may lay them out
    loss = APLoss(delta=delta)(logits, foreground, weights=weights, valid=valid)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(total, abs=1e-12)
    expected = torch.zeros_like(logits)
    expected[tuple(foreground)] = 3 * torch.tensor(of_positives, dtype=torch.float64)
    expected[is_negative] = 3 * torch.tensor(of_negatives, dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-11)


@given(batches(), DELTAS)
def test_value_and_gradient(batch: tuple, delta: float) -> None:
    compare(*batch, delta)


@given(batches(), st.integers(0, 99))
def test_factors_of_foreground_and_of_locations(batch: tuple, seed: int) -> None:
    """That of a location is its foreground's; of its background, only 0 matters."""
    logits, foreground, valid = batch
    generator = torch.Generator().manual_seed(seed)
    factors = 2 * torch.rand(valid.shape, generator=generator).double() * valid
    weights = 2 * torch.rand(foreground.shape[1], generator=generator).double()
    compare(logits, foreground, factors, 1.0, weights)


@given(batches())
def test_background_is_taken_in_parts(batch: tuple) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ap_loss, "CHUNK", 2)
        compare(*batch, 1.0)


def random_batch(shape: tuple, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator).double()
    entries = torch.randperm(logits.numel(), generator=generator)[:count]
    return logits, torch.stack(torch.unravel_index(entries, shape))


def gradient_of(logits: Tensor, foreground: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = APLoss()(logits, foreground, **options)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def test_closed_form() -> None:
    """Foreground 2 and 0, background 1 and -3: errors 0 and 1/3."""
    logits = torch.tensor([[[2.0, 0.0, 1.0, -3.0]]], dtype=torch.float64)
    loss, gradient = gradient_of(logits, torch.tensor([[0, 0], [0, 0], [0, 1]]))
    assert loss.item() / 2 == pytest.approx(1 / 6)
    expected = torch.tensor([[[0, -1 / 6, 1 / 6, 0]]], dtype=torch.float64)
    torch.testing.assert_close(gradient / 2, expected)


def test_what_foreground_gains_background_loses() -> None:
    logits, foreground = random_batch((3, 40, 5), 30)
    loss, gradient = gradient_of(logits, foreground)
    own = gradient[tuple(foreground)]
    assert (own <= 0).all() and (gradient.sum() - own.sum()).item() == pytest.approx(loss.item())
    assert own.sum().item() == pytest.approx(-loss.item())


def test_a_constant_changes_nothing() -> None:
    logits, foreground = random_batch((3, 40, 5), 30)
    for found, expected in zip(
        gradient_of(logits + 7, foreground), gradient_of(logits, foreground), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_foreground_far_above_has_no_loss_at_all() -> None:
    logits, foreground = random_batch((2, 30, 4), 12)
    logits[tuple(foreground)] = logits.max() + 1 + torch.rand(12).double()
    loss, gradient = gradient_of(logits, foreground)
    assert loss == 0 and (gradient == 0).all()


def test_locations_that_are_ignored_have_no_gradient() -> None:
    logits, foreground = random_batch((2, 30, 4), 5)
    valid = torch.zeros(2, 30, dtype=torch.bool)
    valid[foreground[0], foreground[1]] = True
    _, gradient = gradient_of(logits, foreground, valid=valid)
    assert (gradient[~valid] == 0).all() and (gradient[valid] != 0).any()


def test_scores_apart_give_the_interpolated_average_precision() -> None:
    logits, foreground = random_batch((2, 50, 3), 20)
    ranks = logits.flatten().argsort().argsort().view_as(logits)
    loss, _ = gradient_of(4.0 * ranks.double(), foreground)
    hits = torch.zeros(logits.numel(), dtype=torch.float64)
    hits[logits.numel() - 1 - ranks[tuple(foreground)]] = 1  # from the highest score
    precision = hits.cumsum(0) / torch.arange(1, logits.numel() + 1)
    interpolated = precision.flip(0).cummax(0).values.flip(0)
    assert 1 - loss.item() / 20 == pytest.approx(interpolated[hits == 1].mean().item())


def test_without_foreground_the_loss_is_0_and_connected() -> None:
    logits, foreground = random_batch((2, 5, 3), 0)
    loss, gradient = gradient_of(logits, foreground)
    assert loss == 0 and (gradient == 0).all()


def test_single_precision_loses_little_in_a_large_batch() -> None:
    """The sums over 300,000 entries are in double precision."""
    logits, foreground = random_batch((2, 20000, 8), 64)
    logits = logits.float()
    exact, expected = gradient_of(logits.double(), foreground)
    loss, gradient = gradient_of(logits, foreground)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-12)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-12)


@given(st.lists(st.integers(-6, 6)), st.lists(st.integers(-6, 6)), DELTAS)
def test_steps_over(x: list[int], values: list[int], delta: float) -> None:
    ascending = torch.tensor(sorted(values), dtype=torch.float64)
    weights = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    found = steps_over(torch.tensor(x, dtype=torch.float64), ascending, weights, delta)
    expected = [
        sum(w * step(own - value, delta) for w, value in zip(weights.tolist(), sorted(values)))
        for own in x
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
