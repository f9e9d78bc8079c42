"""The pairs that matter in a heap of large boxes, against all pairs there are."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import make_instances, make_priors, random_instances, random_predictions
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import Case, cases
from torch import Tensor

from defcn_d2.modeling.matcher import costs, many_pairs, pairs
from defcn_d2.modeling.matcher.foreground_loss import ForegroundLoss
from defcn_d2.modeling.matcher.many_pairs import best_pairs
from defcn_d2.modeling.matcher.pairs import AllPairs, TooManyPairs, center_pairs
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import Predictions

MATCHERS = [
    POTO(radius=0),
    POTO(radius=0, solver="argmax"),
    POTO(radius=1.5),
    ForegroundLoss(radius=0),
    POTO(radius=0, enlarge_tiny=True),
    ForegroundLoss(enlarge_tiny=True),
]


def total(score: Tensor, gt_idxs: Tensor) -> tuple[int, float]:
    """Ground truths that are matched, once each, and the sum of their scores (M, R)."""
    taken = (gt_idxs >= 0).nonzero().squeeze(1)
    assert len(gt_idxs[taken].unique()) == len(taken)
    return len(taken), score[gt_idxs[taken], taken].double().sum().item()


def score_of(matcher: POTO | ForegroundLoss, predictions: Predictions, gt) -> Tensor:
    if isinstance(matcher, POTO):
        return costs.prediction_quality(predictions, AllPairs.of(gt), matcher.alpha)
    return matcher._score(predictions, AllPairs.of(gt))


@pytest.mark.parametrize("matcher", MATCHERS)
@given(cases(), st.sampled_from([1, 300, 2**24]))
def test_the_optimum_is_that_of_all_pairs(matcher, case: Case, chunk: int) -> None:
    batch = [case.gt, make_instances(8, 8, [], []), case.gt[:2]]
    predictions = random_predictions(case.priors, 3, num_images=3)
    expected = matcher.match_batch(case.priors, predictions, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "MAX_PAIRS", -1)
        patch.setattr(many_pairs, "CHUNK", chunk)
        actual = matcher.match_batch(case.priors, predictions, batch)
    for i, gt in enumerate(batch):
        score = score_of(matcher, predictions[i], gt)
        found, wanted = (total(score, x[i].gt_idxs) for x in (actual, expected))
        assert found[0] == wanted[0]
        assert found[1] == pytest.approx(wanted[1], rel=1e-5)


@pytest.mark.parametrize(("radius", "min_size"), [(0, 40), (0, 1), (1.5, 1)])
def test_pairs_are_the_best_of_each(radius: float, min_size: int) -> None:
    """Fewer where fewer are allowed: small boxes, and small regions of large ones."""
    priors = make_priors(64, 96)
    batch = [random_instances(64, 96, m, 3, seed=m, min_size=min_size) for m in (4, 0, 30)]
    predictions = random_predictions(priors, 3, num_images=3)
    predictions.boxes[0, :20] = torch.nan
    everything = center_pairs(priors, batch, radius)
    score = partial(costs.prediction_quality, alpha=0.8)
    scores = score(predictions, everything)
    found, best = best_pairs(priors, predictions, batch, radius, score)
    assert found.num_gts == everything.num_gts and found.num_locations == len(priors)
    assert best.isfinite().all() and found.allowed.all()
    for gt_idx in range(34):
        own, same = everything.gt_idxs == gt_idx, found.gt_idxs == gt_idx
        finite = scores[own][scores[own].isfinite()]
        expected = finite.sort(descending=True).values[: 4 if gt_idx < 4 else 30]
        torch.testing.assert_close(best[same].sort(descending=True).values, expected)
        locations = found.locations[same]
        assert (locations.diff() > 0).all()
        assert set(locations.tolist()) <= set(everything.locations[own].tolist())
        for field in ("images", "gt_boxes", "gt_classes"):
            actual, wanted = getattr(found, field)[same], getattr(everything, field)[own]
            assert torch.equal(actual, wanted[: len(actual)])


def test_too_many_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    priors = make_priors(64, 64)
    gt = make_instances(64, 64, [[0, 0, 64, 64]] * 3, [0] * 3)
    number = 3 * len(priors)  # cells that are touched
    monkeypatch.setattr(pairs, "MAX_PAIRS", number)
    center_pairs(priors, [gt], 0)
    monkeypatch.setattr(pairs, "MAX_PAIRS", number - 1)
    with pytest.raises(TooManyPairs):
        center_pairs(priors, [gt], 0)
    levels = 5
    monkeypatch.setattr(pairs, "MAX_PAIRS", 3 * levels * 4**2)  # a radius of 1.5 strides
    center_pairs(priors, [gt], 1.5)
    with pytest.raises(TooManyPairs):
        center_pairs(priors, [gt], 30)


def test_a_heap_of_whole_images() -> None:
    """More pairs than are listed: 500 boxes of 12,000 locations each."""
    priors = make_priors(768, 768)
    gt = make_instances(768, 768, [[0, 0, 768, 768]] * 500, [0] * 500)
    assert 500 * len(priors) > pairs.MAX_PAIRS
    predictions = random_predictions(priors, 1, 1)
    matcher = POTO(radius=0)
    (assignment,) = matcher.match_batch(priors, predictions, [gt])
    quality = costs.prediction_quality(predictions[0], AllPairs.of(gt[:1]), 0.8)
    best = quality[0].topk(500)
    # All alike: the best locations, each for one of them.
    assert set((assignment.gt_idxs >= 0).nonzero().squeeze(1).tolist()) == set(
        best.indices.tolist()
    )
