"""Exact one-to-one matching over the few pairs that are allowed, on the host."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

# Up to so many entries a dense matrix of the locations in question is solved as fast as a graph.
DENSE_ENTRIES = 2**15
# Up to so many it is solved where scores are tied, so that ties fall as in the full matrix.
TIED_ENTRIES = 2**18


def solve(
    gts: NDArray,
    locations: NDArray,
    scores: NDArray,
    num_gts: int,
    num_locations: int,
    unmatched: float = -1.0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One-to-one matching of the highest total score over P pairs of an image.

    Equals ``scipy.optimize.linear_sum_assignment`` on the full matrix with ``unmatched`` at the
    pairs that are not allowed, less those pairs: a ground truth without a location left stays
    unmatched. Where several matchings are the best, it is the same of them in small problems (up
    to ``DENSE_ENTRIES``), and up to ``TIED_ENTRIES`` where the lowest score occurs more than once:
    before training, when predicted boxes are empty, many scores are 0. Else it is any of them.

    Args:
        gts: (P,) ground truth of each pair, ascending; any type that holds them exactly.
        locations: (P,) likewise; no pair twice.
        scores: (P,) float. NaN and infinity are never matched.
        num_gts, num_locations: of the full matrix.
        unmatched: below all scores; what a ground truth that stays unmatched adds to the total.
            Far below them, as many as possible are matched, whatever the scores.

    Returns:
        ground truths and locations of the matching's pairs.
    """
    usable = np.isfinite(scores)
    gts, locations = gts[usable].astype(np.int64), locations[usable].astype(np.int64)
    scores = scores[usable].astype(np.float64)
    if len(scores) == 0:
        return gts, locations
    # Besides what any ground truth may take, the first num_gts + 1 locations: at least one of them
    # is always free for a ground truth without a location. Ties go to the lowest index, and what
    # scipy's solver moves about in its list of columns are the first num_gts at most.
    used = np.zeros(num_locations, dtype=bool)
    used[: num_gts + 1] = True
    used[locations] = True
    columns = np.flatnonzero(used)
    entries = num_gts * len(columns)
    if entries <= DENSE_ENTRIES or (entries <= TIED_ENTRIES and _lowest_is_tied(scores)):
        matrix = np.full((num_gts, len(columns)), unmatched)
        matrix[gts, np.searchsorted(columns, locations)] = scores
        rows, matched = linear_sum_assignment(matrix, maximize=True)
        real = matrix[rows, matched] > unmatched
        return rows[real], columns[matched[real]]
    # One more pair is worth at most num_gts times the range of the scores: not to follow
    # ``unmatched`` below that changes nothing, and keeps the digits of the scores.
    low, high = scores.min(), scores.max()
    weights = scores - max(unmatched, low - num_gts * (high - low) - 1)
    rows, matched = _max_weight_matching(
        gts, np.searchsorted(columns, locations), weights, num_gts, len(columns)
    )
    return rows, columns[matched]


def _lowest_is_tied(scores: NDArray) -> bool:
    return bool(np.count_nonzero(scores == scores.min()) > 1)


def _max_weight_matching(
    rows: NDArray, cols: NDArray, weights: NDArray, num_rows: int, num_cols: int
) -> tuple[NDArray, NDArray]:
    """Matching of the highest total weight of a sparse bipartite graph; none of weight < 0.

    Each row gets a private dummy column of weight 0, so that a full matching always exists; the
    solver takes a stored zero for a missing edge, hence all weights are raised by 1.

    Args:
        rows: (P,) ascending.
    """
    counts = np.bincount(rows, minlength=num_rows)
    ends = counts.cumsum()
    graph = csr_matrix(
        (
            np.insert(weights + 1, ends, 1.0),
            np.insert(cols, ends, num_cols + np.arange(num_rows)),
            np.concatenate([[0], ends + np.arange(1, num_rows + 1)]),
        ),
        shape=(num_rows, num_cols + num_rows),
    )
    matched_rows, matched_cols = min_weight_full_bipartite_matching(graph, maximize=True)
    real = matched_cols < num_cols
    return matched_rows[real], matched_cols[real]
