"""Building blocks of matchers: which pairs are allowed, and who wins.

Every matcher is (score, mask, resolve) over pairs of M ground truths and R priors; these are the
masks and the two ways to resolve. All are pure functions without gradient.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from ..box_ops import EPS, pairwise_ltrb
from ..structures import BACKGROUND, Priors

# Matrices of more entries are solved sparsely, which is faster there.
DENSE_PAIRS = 2**18


def inside_box(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Pairs whose location lies strictly inside the box.

    Args:
        gt_boxes: (M, 4) xyxy.

    Returns:
        (M, R) bool.
    """
    return pairwise_ltrb(priors.centers, gt_boxes).amin(dim=-1) > 0


def inside_center(priors: Priors, gt_boxes: Tensor, radius: float) -> Tensor:
    """Pairs whose location lies strictly inside the central region of the box.

    The region is a square of side 2 * radius * stride around the box's centre, clipped to the
    box (arXiv 1904.01355v4, section 3.3 "center sampling"; the prior of POTO).

    Args:
        gt_boxes: (M, 4) xyxy.
        radius: in strides of the location's own level; 0 means the whole box.

    Returns:
        (M, R) bool.
    """
    if radius == 0:
        return inside_box(priors, gt_boxes)
    gt_centers = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2
    reach = (priors.strides * radius)[:, None]
    regions = torch.cat(
        [
            torch.maximum(gt_centers - reach, gt_boxes[:, None, :2]),
            torch.minimum(gt_centers + reach, gt_boxes[:, None, 2:]),
        ],
        dim=-1,
    )
    return pairwise_ltrb(priors.centers, regions).amin(dim=-1) > 0


def inside_size_range(
    priors: Priors, gt_boxes: Tensor, size_ranges: list[tuple[float, float]]
) -> Tensor:
    """Pairs whose longest distance from location to side, max(l, t, r, b), suits the level.

    Args:
        gt_boxes: (M, 4) xyxy.
        size_ranges: smallest and largest distance in pixels per level, both included
            (arXiv 1904.01355, section 3.2).

    Returns:
        (M, R) bool.

    Raises:
        ValueError: not one range a level.
    """
    if len(size_ranges) != len(priors.level_sizes):
        raise ValueError(
            f"MATCHER.SIZE_RANGES has {len(size_ranges)} ranges for {len(priors.level_sizes)} "
            "levels; give one range for each of MODEL.DEFCN.IN_FEATURES"
        )
    longest = pairwise_ltrb(priors.centers, gt_boxes).amax(dim=-1)
    suits = [
        (level >= low) & (level <= high)
        for level, (low, high) in zip(
            longest.split(priors.level_sizes, dim=1), size_ranges, strict=True
        )
    ]
    return torch.cat(suits, dim=1)


def topk(score: Tensor, k: int) -> Tensor:
    """The k best priors of each ground truth (all, where there are fewer).

    Args:
        score: (M, R) float; with k = 1 ties go to the first prior, else to any.

    Returns:
        (M, R) bool with min(k, R) pairs a row.
    """
    if k == 1:
        best = score.argmax(dim=1, keepdim=True)
    else:
        best = score.topk(min(k, score.shape[1]), dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)


def topk_per_level(score: Tensor, k: int, level_sizes: list[int]) -> Tensor:
    """The k best priors of each ground truth on each level (all of a level that has fewer).

    Args:
        score: (M, R) float.
        level_sizes: priors per level.

    Returns:
        (M, R) bool.
    """
    return torch.cat([topk(level, k) for level in score.split(level_sizes, dim=1)], dim=1)


def above_mean_std(score: Tensor, candidates: Tensor) -> Tensor:
    """Pairs that score at least mean + standard deviation of their ground truth's candidates.

    The adaptive threshold of ATSS (arXiv 1912.02424, section 3.2), with the unbiased deviation;
    a single candidate has deviation 0.

    Args:
        score: (M, R) float.
        candidates: (M, R) bool with equally many, at least one, in each row.

    Returns:
        (M, R) bool; not restricted to the candidates.
    """
    values = score[candidates].view(len(score), -1)
    threshold = values.mean(dim=1, keepdim=True)
    if values.shape[1] > 1:
        threshold = threshold + values.std(dim=1, keepdim=True)
    return score >= threshold


def centerness(priors: Priors, gt_boxes: Tensor, gt_idxs: Tensor) -> Tensor:
    """How central every prior's location is in the ground truth that it learns.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))  (arXiv 1904.01355, eq. 3).

    Args:
        gt_boxes: (M, 4) xyxy.
        gt_idxs: (R,) int64, index of the ground truth or ``BACKGROUND``.

    Returns:
        (R,) float in [0, 1]; 0 for background and for locations outside of their box.
    """
    foreground = torch.nonzero(gt_idxs >= 0).squeeze(1)
    boxes, centers = gt_boxes[gt_idxs[foreground]], priors.centers[foreground]
    low, high = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = torch.minimum(low, high).clamp(min=0) / torch.maximum(low, high).clamp(min=EPS)
    return priors.strides.new_zeros(len(priors)).index_put_(
        (foreground,), ratios.prod(dim=1).sqrt()
    )


def best_gt(score: Tensor, mask: Tensor) -> Tensor:
    """Give every prior the allowed ground truth of highest score, if it has any.

    Args:
        score: (M, R) float, M >= 1; ties go to the first ground truth.
        mask: (M, R) bool, the allowed pairs.

    Returns:
        (R,) int64, index of the ground truth or ``BACKGROUND``.
    """
    gt_idxs = score.masked_fill(~mask, -torch.inf).argmax(dim=0)
    return torch.where(mask.any(dim=0), gt_idxs, BACKGROUND)


def hungarian(score: Tensor, mask: Tensor, unmatched: float = -1.0) -> Tensor:
    """One-to-one matching of the highest total score over the allowed pairs.

    Equals ``scipy.optimize.linear_sum_assignment`` on the full matrix with ``unmatched`` at the
    pairs that are not allowed, less those pairs: a ground truth without a location left stays
    unmatched. Up to ``DENSE_PAIRS`` that holds for ties, too: before training, when predicted boxes
    are empty, all scores may be 0.

    Args:
        score: (M, R) float. NaN and infinity are never matched.
        mask: (M, R) bool, the allowed pairs.
        unmatched: below all scores; what a ground truth that stays unmatched adds to the total.
            Far below them, as many as possible are matched, whatever the scores.

    Returns:
        (R,) int64, index of the ground truth or ``BACKGROUND``.
    """
    mask = mask & score.isfinite()
    columns = _deciding_columns(mask)
    if len(score) * len(columns) > DENSE_PAIRS:
        return _hungarian_sparse(score, mask, unmatched)
    dense = score[:, columns].masked_fill(~mask[:, columns], unmatched).cpu().numpy()
    gts, matched = linear_sum_assignment(dense, maximize=True)
    real = dense[gts, matched] > unmatched
    return _to_gt_idxs(gts[real], columns.cpu().numpy()[matched[real]], score)


def _deciding_columns(mask: Tensor) -> Tensor:
    """Indices of the priors that can change what ``linear_sum_assignment`` returns, ascending.

    Those that any ground truth may take; and the first M + 1, of which at least one is always free
    for a ground truth without a location: ties go to the lowest index, and what the solver moves
    about in its list of columns are the first M at most.
    """
    used = mask.any(dim=0)
    used[: len(mask) + 1] = True
    return torch.nonzero(used).squeeze(1)


def _hungarian_sparse(score: Tensor, mask: Tensor, unmatched: float) -> Tensor:
    """``hungarian`` in time and memory that grow with the allowed pairs alone."""
    num_gts, num_priors = score.shape
    gts, priors = torch.nonzero(mask, as_tuple=True)
    # One transfer: indices are exact in float64, float32 scores too.
    pairs = torch.stack([gts.double(), priors.double(), score[gts, priors].double()]).cpu().numpy()
    matched_gts, matched_priors = _max_weight_matching(
        pairs[0].astype(np.int64),
        pairs[1].astype(np.int64),
        _above_unmatched(pairs[2], unmatched, num_gts),
        num_gts,
        num_priors,
    )
    return _to_gt_idxs(matched_gts, matched_priors, score)


def hungarian_dense(score: Tensor, mask: Tensor, unmatched: float = -1.0) -> Tensor:
    """As ``hungarian``, but a ground truth without a location left takes any other one.

    What the original release does: which one, ``linear_sum_assignment`` decides.
    """
    dense = score.masked_fill(~mask | ~score.isfinite(), unmatched).cpu().numpy()
    matched_gts, matched_priors = linear_sum_assignment(dense, maximize=True)
    return _to_gt_idxs(matched_gts, matched_priors, score)


def _above_unmatched(scores: np.ndarray, unmatched: float, num_gts: int) -> np.ndarray:
    """Weights (P,) of pairs from their scores, 0 being worth as much as no pair.

    One more pair is worth at most num_gts times the range of the scores, so that a lower
    ``unmatched`` changes nothing: not following it there keeps the digits of the scores.
    """
    if len(scores) == 0:
        return scores
    low, high = scores.min(), scores.max()
    return scores - max(unmatched, low - num_gts * (high - low) - 1)


def _max_weight_matching(
    rows: np.ndarray, cols: np.ndarray, weights: np.ndarray, num_rows: int, num_cols: int
) -> tuple[np.ndarray, np.ndarray]:
    """Matching of the highest total weight of a sparse bipartite graph; none of weight < 0.

    Each row gets a private dummy column of weight 0, so that a full matching always exists; the
    solver takes a stored zero for a missing edge, hence all weights are raised by 1.
    """
    if len(rows) == 0:
        return rows, cols
    used, cols = np.unique(cols, return_inverse=True)
    dummies = np.arange(num_rows)
    graph = csr_matrix(
        (
            np.concatenate([weights + 1, np.ones(num_rows)]),
            (np.concatenate([rows, dummies]), np.concatenate([cols, len(used) + dummies])),
        ),
        shape=(num_rows, len(used) + num_rows),
    )
    matched_rows, matched_cols = min_weight_full_bipartite_matching(graph, maximize=True)
    real = matched_cols < len(used)
    return matched_rows[real], used[matched_cols[real]]


def _to_gt_idxs(matched_gts: np.ndarray, matched_priors: np.ndarray, like: Tensor) -> Tensor:
    """(R,) int64 on the device of the scores ``like`` (M, R)."""
    gt_idxs = torch.full((like.shape[1],), BACKGROUND, dtype=torch.int64)
    gt_idxs[torch.from_numpy(matched_priors)] = torch.from_numpy(matched_gts).long()
    return gt_idxs.to(like.device)
