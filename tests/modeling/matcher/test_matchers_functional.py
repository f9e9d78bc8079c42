"""Masks and solvers of matchers against loops and against scipy on the full matrix."""

import math

import numpy as np
import pytest
import torch
from helpers import make_instances, make_priors
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from slow_matching import (
    Case,
    boxes_of_gt,
    cases,
    in_center_region,
    in_size_range,
    locations,
    strictly_inside,
    tiny_enlarged,
)
from slow_matching import centerness as slow_centerness
from torch import Tensor

from defcn_d2.modeling.matcher import MATCHER_REGISTRY
from defcn_d2.modeling.matcher import functional as F
from defcn_d2.modeling.matcher.costs import nearness
from defcn_d2.structures import BACKGROUND, Predictions

SIZE_RANGES = [[-1, 16], [16, 32], [32, 64], [64, 128], [128, float("inf")]]


@st.composite
def scores_and_masks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores in [0, 1], few different or many, and which pairs are allowed: few or many."""
    num_gts, num_priors = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    score = torch.rand(num_gts, num_priors, generator=generator)
    steps = draw(st.sampled_from([0, 1, 3, None]))
    if steps is not None:  # ties
        score = (score * steps).round() / max(steps, 1)
    density = draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))
    mask = torch.rand(num_gts, num_priors, generator=generator) < density
    return score, mask


def pairs_of(gt_idxs: Tensor) -> dict[int, int]:
    """Ground truth to prior, each at most once."""
    priors = torch.nonzero(gt_idxs >= 0).squeeze(1).tolist()
    pairs = {int(gt_idxs[r]): r for r in priors}
    assert len(pairs) == len(priors)
    return pairs


def slow_pairs(score: Tensor, mask: Tensor, unmatched: float = -1.0) -> dict[int, int]:
    """Pairs that ``linear_sum_assignment`` finds in the full matrix."""
    full = np.where(mask.numpy(), score.numpy(), unmatched)
    rows, columns = linear_sum_assignment(full, maximize=True)
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))


def only_allowed(pairs: dict[int, int], mask: Tensor) -> dict[int, int]:
    return {g: r for g, r in pairs.items() if mask[g, r]}


@given(cases(), st.sampled_from([0.0, 0.5, 1.5, 2.25]), st.booleans())
def test_regions(case: Case, radius: float, enlarge_tiny: bool) -> None:
    gt_boxes = case.gt.gt_boxes.tensor
    inside = F.inside_box(case.priors, gt_boxes, enlarge_tiny)
    center = F.inside_center(case.priors, gt_boxes, radius, enlarge_tiny)
    sizes = F.inside_size_range(case.priors, gt_boxes, SIZE_RANGES)
    for g, box in enumerate(boxes_of_gt(case.gt)):
        region = tiny_enlarged(box, (8, 16, 32, 64, 128)) if enlarge_tiny else box
        for location in locations(case.priors):
            r = location.index
            assert inside[g, r] == strictly_inside(location, region)
            expected = in_center_region(location, region, radius) if radius else inside[g, r]
            assert center[g, r] == expected
            assert sizes[g, r] == in_size_range(location, box, SIZE_RANGES)


def test_tiny_boxes_with_a_single_level() -> None:
    """There is no second stride: they are as large as a cell."""
    priors = make_priors(16, 16, strides=(8,))  # centres at 4 and 12
    tiny = torch.tensor([[6.0, 5, 8, 16]])
    assert not F.inside_box(priors, tiny).any()
    assert F.inside_box(priors, tiny, enlarge_tiny=True).tolist() == [[False, False, True, False]]


WITH_REGION = [
    name for name in MATCHER_REGISTRY.names() if "enlarge_tiny" in MATCHER_REGISTRY.keys_of(name)
]


@pytest.mark.parametrize("name", WITH_REGION)
@pytest.mark.parametrize("sides", [(3.0, 3.0), (2.0, 40.0)])
def test_every_matcher_with_a_region_finds_tiny_boxes(
    name: str, sides: tuple[float, float]
) -> None:
    """Between the locations; without the key they have none."""
    priors = make_priors(64, 64)
    gt = make_instances(64, 64, [[8.5, 8.5, 8.5 + sides[0], 8.5 + sides[1]]], [0])
    reach = 4 * priors.strides[:, None]
    boxes = torch.cat([priors.centers - reach, priors.centers + reach], dim=1)
    logits = nearness(priors, gt.gt_boxes.tensor).t()  # the nearest is best
    predictions = Predictions(logits, boxes)
    found = {
        enlarge: MATCHER_REGISTRY.get(name)(enlarge_tiny=enlarge)(priors, predictions, gt)
        for enlarge in (False, True)
    }
    assert (found[False].gt_idxs == BACKGROUND).all()
    assert (found[True].gt_idxs == 0).any()


def test_matchers_with_a_region() -> None:
    names = {"ATSS", "FCOS", "ForegroundLoss", "OneToFew", "POTO", "POTOAux", "TaskAligned"}
    assert names <= set(WITH_REGION)


def test_border_of_a_region_is_outside() -> None:
    priors = make_priors(16, 16, strides=(8,))  # centres at 4 and 12
    assert F.inside_box(priors, torch.tensor([[4.0, 0, 16, 16]])).tolist() == [
        [False, True, False, True]
    ]
    # The box's centre is (8, 8), half a stride from all of them.
    everything = torch.tensor([[0.0, 0, 16, 16]])
    assert not F.inside_center(priors, everything, radius=0.5).any()
    assert F.inside_center(priors, everything, radius=0.6).all()


def test_one_size_range_a_level() -> None:
    sentence = (
        "MATCHER.SIZE_RANGES has 2 ranges for 5 levels; "
        "give one range for each of MODEL.DEFCN.IN_FEATURES"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        F.inside_size_range(make_priors(64, 64), torch.zeros(1, 4), SIZE_RANGES[:2])


@given(st.integers(1, 5), st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 12))
def test_topk_per_level(num_gts: int, level_sizes: list[int], k: int) -> None:
    # Distinct numbers, so that there is one answer.
    generator = torch.Generator().manual_seed(sum(level_sizes))
    num_priors = sum(level_sizes)
    score = torch.stack([torch.randperm(num_priors, generator=generator) for _ in range(num_gts)])
    selected = F.topk_per_level(score.float(), k, level_sizes)
    for g in range(num_gts):
        start = 0
        for size in level_sizes:
            level = score[g, start : start + size].tolist()
            best = sorted(range(size), key=lambda r: -level[r])[:k]
            assert selected[g, start : start + size].nonzero().squeeze(1).tolist() == sorted(best)
            start += size
    one_level = F.topk(score.float(), k)
    assert torch.equal(one_level, F.topk_per_level(score.float(), k, [num_priors]))
    assert (one_level.sum(dim=1) == min(k, num_priors)).all()


@pytest.mark.parametrize("num_priors", [1, 5, 50, 5000])
def test_the_first_of_equally_good_priors(num_priors: int) -> None:
    selected = F.topk(torch.zeros(2, num_priors), k=1)
    assert selected.nonzero().tolist() == [[0, 0], [1, 0]]


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 9))
def test_mean_and_deviation_of_candidates(num_gts: int, num_priors: int, k: int) -> None:
    generator = torch.Generator().manual_seed(num_priors)
    score = torch.rand(num_gts, num_priors, generator=generator, dtype=torch.float64)
    candidates = F.topk(score, k)
    above = F.above_mean_std(score, candidates)
    for g in range(num_gts):
        values = [score[g, r].item() for r in range(num_priors) if candidates[g, r]]
        threshold = np.mean(values) + (np.std(values, ddof=1) if len(values) > 1 else 0)
        for r in range(num_priors):
            if abs(score[g, r].item() - threshold) > 1e-12:
                assert above[g, r] == (score[g, r].item() > threshold)
    if num_priors == 1:  # the only candidate is its own mean
        assert above.all()


def test_a_single_candidate_has_no_deviation(recwarn: pytest.WarningsRecorder) -> None:
    """Of which PyTorch would warn."""
    score = torch.tensor([[0.2, 0.5, 0.7]])
    above = F.above_mean_std(score, torch.tensor([[False, True, False]]))
    assert above.tolist() == [[False, True, True]] and not recwarn.list


@given(cases(max_gts=3), st.integers(0, 2**16))
def test_centerness(case: Case, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gt_boxes = case.gt.gt_boxes.tensor
    gt_idxs = torch.randint(BACKGROUND, len(gt_boxes), (len(case.priors),), generator=generator)
    target = F.centerness(case.priors, gt_boxes, gt_idxs)
    for location in locations(case.priors):
        gt = int(gt_idxs[location.index])
        box = boxes_of_gt(case.gt)[gt]
        inside = gt != BACKGROUND and strictly_inside(location, box)
        expected = slow_centerness(location, box) if inside else 0
        assert target[location.index].item() == pytest.approx(expected, abs=1e-6)


@given(scores_and_masks())
def test_best_gt(case: tuple[Tensor, Tensor]) -> None:
    score, mask = case
    gt_idxs = F.best_gt(score, mask)
    assert gt_idxs.dtype == torch.int64
    for r in range(score.shape[1]):
        allowed = [g for g in range(len(score)) if mask[g, r]]
        best = max(allowed, key=lambda g: score[g, r].item()) if allowed else BACKGROUND
        assert gt_idxs[r] == best  # max() takes the first of equals


@settings(max_examples=300)
@given(scores_and_masks())
def test_hungarian_is_scipy_on_the_full_matrix(case: tuple[Tensor, Tensor]) -> None:
    """The same pairs, ties and more ground truths than locations included."""
    score, mask = case
    assert pairs_of(F.hungarian(score, mask)) == only_allowed(slow_pairs(score, mask), mask)
    assert pairs_of(F.hungarian_dense(score, mask)) == slow_pairs(score, mask)


def test_no_candidates() -> None:
    gt_idxs = F.hungarian(torch.rand(3, 7), torch.zeros(3, 7, dtype=torch.bool))
    assert gt_idxs.tolist() == [BACKGROUND] * 7


def test_more_ground_truths_than_locations() -> None:
    score, mask = torch.rand(9, 4), torch.ones(9, 4, dtype=torch.bool)
    for gt_idxs in (F.hungarian(score, mask), F.hungarian_dense(score, mask)):
        assert pairs_of(gt_idxs) == slow_pairs(score, mask)
        assert len(pairs_of(gt_idxs)) == 4


def test_the_only_location_of_two_goes_to_the_higher_score() -> None:
    score = torch.tensor([[0.9, 0.0], [0.8, 0.0]])
    mask = torch.tensor([[True, False], [True, False]])
    assert F.hungarian(score, mask).tolist() == [0, BACKGROUND]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_lose(value: float) -> None:
    score = torch.tensor([[value, 0.5, 0.1, value], [value] * 4])
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert F.topk(score, 1).tolist() == [[False, True, False, False], [True, False, False, False]]
    assert F.topk(score, 2)[0].tolist() == [False, True, True, False]
    assert F.topk(score, 3).sum(dim=1).tolist() == [3, 3]
    assert F.best_gt(score, everything).tolist() == [BACKGROUND, 0, 0, BACKGROUND]
    assert F.hungarian(score, everything).tolist() == [BACKGROUND, 0, BACKGROUND, BACKGROUND]
    assert len(pairs_of(F.hungarian_dense(score, everything))) == 2


def test_the_lowest_number_comes_before_what_is_none() -> None:
    lowest = torch.finfo(torch.float32).min
    score = torch.tensor([[math.nan, -math.inf, math.inf, lowest], [math.nan, -math.inf] * 2])
    assert F.topk(score, 1).nonzero().tolist() == [[0, 3], [1, 0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@given(num_finite=st.integers(0, 6), num_others=st.integers(0, 3))
def test_mean_and_deviation_are_those_of_finite_scores(
    value: float, num_finite: int, num_others: int
) -> None:
    assume(num_finite + num_others)
    finite = torch.rand(1, num_finite, dtype=torch.float64)
    score = torch.cat([torch.full((1, num_others), value).double(), finite], dim=1)
    above = F.above_mean_std(score, torch.ones_like(score, dtype=torch.bool))
    assert not above[:, :num_others].any()
    if num_finite > 1:
        threshold = finite.mean() + finite.std()
        assume((finite - threshold).abs().min() > 1e-12)
        assert torch.equal(above[:, num_others:], finite >= threshold)
    else:  # its own mean
        assert above[:, num_others:].all()


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1), st.integers(1, 8))
def test_the_first_of_equal_scores_are_among_the_best(rows: list, k: int) -> None:
    found = F.first_topk(torch.tensor(rows).float(), k)
    for row, chosen in zip(rows, found, strict=True):
        expected = sorted(range(6), key=lambda r: (-row[r], r))[:k]
        assert chosen.nonzero().flatten().tolist() == sorted(expected)
