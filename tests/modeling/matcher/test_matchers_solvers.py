"""The solver over pairs against ``linear_sum_assignment`` on the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from defcn_d2.modeling.matcher import solvers
from defcn_d2.modeling.matcher.solvers import solve

RANDOM_CASES = 10_000


def random_case(seed: int) -> NDArray:
    """(M, R) scores in [0, 1], NaN where a pair is not allowed: few or many, tied or not.

    Some ground truths have no location, some cases more ground truths than locations.
    """
    generator = np.random.default_rng(seed)
    num_gts, num_locations = generator.integers(1, 13), generator.integers(1, 31)
    scores = generator.random((num_gts, num_locations))
    ties = seed % 4
    if ties == 1:
        scores = np.round(3 * scores) / 3
    elif ties == 2:
        scores[scores < 0.7] = 0  # as before training
    elif ties == 3:
        scores[:] = 0
    density = generator.choice([0.05, 0.2, 0.5, 1.0])
    scores[generator.random(scores.shape) > density] = np.nan
    if seed % 3 == 0:
        scores[generator.integers(num_gts)] = np.nan
    return scores


def crowd(num_gts: int, num_locations: int, per_gt: int, seed: int, tied: bool) -> NDArray:
    """Each ground truth has the locations of an interval, which overlap a lot."""
    generator = np.random.default_rng(seed)
    scores = np.full((num_gts, num_locations), np.nan)
    for row in scores:
        start = generator.integers(num_locations - per_gt)
        row[start : start + per_gt] = generator.random(per_gt)
    return np.round(scores * 4) / 4 if tied else scores


def solved(scores: NDArray, unmatched: float = -1.0) -> dict[int, int]:
    gts, locations = np.nonzero(~np.isnan(scores))
    matched = solve(gts, locations, scores[gts, locations], *scores.shape, unmatched)
    pairs = dict(zip(*(idxs.tolist() for idxs in matched)))
    assert len(pairs) == len(set(pairs.values())) == len(matched[0])
    return pairs


def expected(scores: NDArray, unmatched: float = -1.0) -> dict[int, int]:
    """The pairs of the full matrix that are allowed."""
    full = np.where(np.isnan(scores), unmatched, scores)
    rows, columns = linear_sum_assignment(full, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist())
    return {g: r for g, r in pairs if not np.isnan(scores[g, r])}


def total(scores: NDArray, pairs: dict[int, int], unmatched: float = -1.0) -> float:
    """Total of the full matrix beyond that of no pair at all."""
    return sum(scores[g, r] - unmatched for g, r in pairs.items())


@pytest.fixture
def only_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "DENSE_ENTRIES", 0)
    monkeypatch.setattr(solvers, "TIED_ENTRIES", 0)


def test_random_cases_have_the_same_pairs() -> None:
    for seed in range(RANDOM_CASES):
        scores = random_case(seed)
        assert solved(scores) == expected(scores), seed


def test_random_cases_solved_as_a_graph(only_sparse: None) -> None:
    for seed in range(RANDOM_CASES):
        scores = random_case(seed)
        actual, best = solved(scores), expected(scores)
        assert total(scores, actual) == pytest.approx(total(scores, best), abs=1e-12), seed
        if seed % 4 == 0:  # distinct scores: there is one best matching
            assert actual == best, seed


@pytest.mark.parametrize(("num_gts", "per_gt"), [(100, 40), (100, 260), (500, 40), (500, 260)])
@pytest.mark.parametrize("tied", [False, True])
def test_crowds(num_gts: int, per_gt: int, tied: bool) -> None:
    scores = crowd(num_gts, 12 * num_gts, per_gt, seed=per_gt, tied=tied)
    scores[::50] = np.nan  # out of reach
    actual, best = solved(scores), expected(scores)
    assert not actual.keys() & set(range(0, num_gts, 50))
    assert total(scores, actual) == pytest.approx(total(scores, best), abs=1e-9)
    if not tied:
        assert actual == best


def test_ties_of_the_lowest_score_fall_as_in_the_full_matrix() -> None:
    """A training that has just begun: 60 ground truths, 40 locations each, many qualities 0."""
    scores = crowd(60, 2000, 40, seed=0, tied=False)
    scores[scores < 0.95] = 0
    assert solvers.DENSE_ENTRIES < 60 * (~np.isnan(scores)).any(axis=0).sum()
    actual = solved(scores)
    assert 0 in (scores[g, r] for g, r in actual.items())
    assert actual == expected(scores)


def test_where_all_scores_are_equal_ties_fall_as_in_the_full_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More ground truths than locations, all of score 0: a graph would leave others without."""
    scores = 0 * crowd(200, 180, 40, seed=0, tied=False)
    assert solved(scores) == expected(scores)
    monkeypatch.setattr(solvers, "TIED_ENTRIES", 0)
    assert solved(scores) != expected(scores)


@pytest.mark.parametrize(("copies", "as_matrix"), [(1, False), (2, True), (3, True)])
def test_a_matrix_larger_than_need_be_is_solved_for_ties_of_the_lowest_score_alone(
    monkeypatch: pytest.MonkeyPatch, copies: int, as_matrix: bool
) -> None:
    scores = 1 + crowd(60, 2000, 40, seed=0, tied=False)
    gts, locations = np.nonzero(~np.isnan(scores))
    scores[gts[:copies], locations[:copies]] = 0.5
    best, calls = expected(scores), []

    def recorded(matrix: NDArray, maximize: bool) -> tuple[NDArray, NDArray]:
        calls.append(matrix.shape)
        return linear_sum_assignment(matrix, maximize=maximize)

    monkeypatch.setattr(solvers, "linear_sum_assignment", recorded)
    assert solved(scores) == best
    assert len(calls) == as_matrix


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dense_entries", [0, 2**15])
def test_scores_that_are_not_finite_never_match(
    monkeypatch: pytest.MonkeyPatch, value: float, dense_entries: int
) -> None:
    monkeypatch.setattr(solvers, "DENSE_ENTRIES", dense_entries)
    gts, locations = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    scores = np.array([0.5, value, 0.1, value, value])
    matched = solve(gts, locations, scores, 2, 3)
    assert [idxs.tolist() for idxs in matched] == [[0], [0]]
    nothing = solve(gts, locations, np.full(5, value), 2, 3)
    assert [idxs.tolist() for idxs in nothing] == [[], []]


@pytest.mark.parametrize("offset", [-40.0, 0.0])
@pytest.mark.parametrize("sparse", [False, True])
def test_far_lower_value_of_no_pair_matches_as_many_as_possible(
    request: pytest.FixtureRequest, offset: float, sparse: bool
) -> None:
    if sparse:
        request.getfixturevalue("only_sparse")
    for seed in range(300):
        scores = random_case(seed) * 10 + offset
        actual, best = solved(scores, unmatched=-1e8), expected(scores, unmatched=-1e8)
        assert len(actual) == len(best)
        difference = total(scores, actual, offset) - total(scores, best, offset)
        assert difference == pytest.approx(0, abs=1e-4), seed


def test_far_lower_value_of_no_pair_keeps_the_digits_of_the_scores(only_sparse: None) -> None:
    """Beside 1e12 the fifth digit of a score is lost in float64."""
    assert solved(np.array([[0.1, 0.10001, 0.1]]), unmatched=-1e12) == {0: 1}
