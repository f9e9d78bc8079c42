"""Building blocks of matchers: which pairs are allowed, and who wins.

Every matcher is (score, mask, resolve) over pairs of M ground truths and R priors; these are the
masks and the two ways to resolve. All are pure functions without gradient.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...structures import BACKGROUND, Priors
from .. import box_ops
from .solvers import solve


def inside_box(priors: Priors, gt_boxes: Tensor, enlarge_tiny: bool = False) -> Tensor:
    """Pairs whose location lies strictly inside the box.

    Args:
        gt_boxes: (M, 4) xyxy.
        enlarge_tiny: see ``center_region``.

    Returns:
        (M, R) bool.
    """
    return inside_center(priors, gt_boxes, 0, enlarge_tiny)


def inside_center(
    priors: Priors, gt_boxes: Tensor, radius: float, enlarge_tiny: bool = False
) -> Tensor:
    """Pairs whose location lies strictly inside the central region of the box.

    Args:
        gt_boxes: (M, 4) xyxy.
        radius, enlarge_tiny: see ``center_region``.

    Returns:
        (M, R) bool.
    """
    low, high = center_region(gt_boxes, priors.level_strides, radius, enlarge_tiny)
    levels = priors.centers.split(priors.level_sizes)  # (R_l, 2) each
    return torch.cat(
        [
            # (R_l, 2) with (M, 1, 2) to (M, R_l)
            ((centers > low[:, [level]]) & (centers < high[:, [level]])).all(dim=-1)
            for level, centers in enumerate(levels)
        ],
        dim=1,
    )


def center_region(
    gt_boxes: Tensor, level_strides: Tensor, radius: float, enlarge_tiny: bool = False
) -> tuple[Tensor, Tensor]:
    """The central region of every box, on every level.

    It is a square of side 2 * radius * stride around the box's centre, clipped to the box
    (arXiv 1904.01355v4, section 3.3 "center sampling"; arXiv 2012.03544, section 3.2).

    Args:
        gt_boxes: (M, 4) xyxy.
        level_strides: (L,) in pixels.
        radius: in strides of the location's own level; 0 means the whole box.
        enlarge_tiny: in the region, sides shorter than the finest stride are as long as the second
            stride, about the same centre (YOLO26's STAL): it holds a location then. Distances of
            "points" are not negative, so that a box predicted outside of its object never fits it.

    Returns:
        the upper left and the lower right corners, both (M, L, 2) xy.
    """
    if enlarge_tiny:
        gt_boxes = _tiny_enlarged(gt_boxes, level_strides)
    low, high = gt_boxes[:, None, :2], gt_boxes[:, None, 2:]  # (M, 1, 2)
    if radius:
        centers, reach = (low + high) / 2, (level_strides * radius)[:, None]  # (M, 1, 2), (L, 1)
        return torch.maximum(centers - reach, low), torch.minimum(centers + reach, high)
    shape = (len(gt_boxes), len(level_strides), 2)
    return low.expand(shape), high.expand(shape)


def _tiny_enlarged(gt_boxes: Tensor, level_strides: Tensor) -> Tensor:
    """(M, 4) boxes, sides below the finest stride as long as the second (where there is one)."""
    sides, centers = gt_boxes[:, 2:] - gt_boxes[:, :2], (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    reach = level_strides[:2][-1] / 2
    grown = torch.cat([centers - reach, centers + reach], dim=1)
    return torch.where((sides < level_strides[0]).repeat(1, 2), grown, gt_boxes)


def inside_size_range(
    priors: Priors, gt_boxes: Tensor, size_ranges: Sequence[Sequence[float]]
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
    suits = []
    left, top, right, bottom = gt_boxes[:, :, None].unbind(dim=1)  # (M, 1) each
    for centers, (low, high) in zip(priors.centers.split(priors.level_sizes), size_ranges):
        x, y = centers.unbind(dim=1)  # (R_l,)
        longest = torch.maximum(x - left, right - x)  # (M, R_l)
        longest = torch.maximum(longest, torch.maximum(y - top, bottom - y))
        suits.append((longest >= low) & (longest <= high))
    return torch.cat(suits, dim=1)


def topk(score: Tensor, k: int) -> Tensor:
    """The k best priors of each ground truth (all, where there are fewer).

    Args:
        score: (M, R) float; with k = 1 ties go to the first prior, else to any. NaN and infinity
            come after all finite ones.

    Returns:
        (M, R) bool with min(k, R) pairs a row.
    """
    score = score.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    if k == 1:
        best = score.argmax(dim=1, keepdim=True)  # (M, 1)
    else:
        best = score.topk(min(k, score.shape[1]), dim=1).indices  # (M, k)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)


def first_topk(score: Tensor, k: int) -> Tensor:
    """``topk`` where ties go to the first priors for any k.

    Args:
        score: (M, R) float, no NaN.

    Returns:
        (M, R) bool with min(k, R) pairs a row.
    """
    least = score.topk(min(k, score.shape[1]), dim=1).values[:, -1:]  # (M, 1)
    above, ties = score > least, score == least
    places = k - above.sum(dim=1, keepdim=True)
    return above | (ties & (ties.cumsum(dim=1) <= places))


def square_anchors(priors: Priors, scale: float) -> Tensor:
    """(R, 4) xyxy squares about the locations, whose side is ``scale`` strides."""
    reach = priors.strides[:, None] * scale / 2
    return torch.cat([priors.centers - reach, priors.centers + reach], dim=1)


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
    """Pairs of at least the candidates' mean + standard deviation (arXiv 1912.02424, section 3.2).

    Args:
        score: (M, R) float; NaN and infinity count for nothing and are below every threshold.
        candidates: (M, R) bool, the same number, at least 1, in each row.

    Returns:
        (M, R) bool; not restricted to the candidates.
    """
    values = score[candidates].view(len(score), -1)  # (M, candidates)
    finite = values.isfinite()
    count = finite.sum(dim=1, keepdim=True)  # (M, 1)
    mean = values.masked_fill(~finite, 0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    threshold = mean
    if values.shape[1] > 1:
        # The others add nothing to the squared deviations, only to the number of values.
        std = torch.where(finite, values, mean).std(dim=1, keepdim=True)
        std = std * ((values.shape[1] - 1) / (count - 1).clamp(min=1)).sqrt()
        threshold = mean + std.masked_fill(count < 2, 0)
    return (score >= threshold) & score.isfinite()


def centerness(priors: Priors, gt_boxes: Tensor, gt_idxs: Tensor) -> Tensor:
    """Centerness of every prior's location in the ground truth that it learns.

    Args:
        gt_boxes: (M, 4) xyxy.
        gt_idxs: (R,) int64, index of the ground truth or ``BACKGROUND``.

    Returns:
        (R,) float in [0, 1]; 0 for background and for locations outside of their box.
    """
    foreground = torch.nonzero(gt_idxs >= 0).squeeze(1)  # (P,)
    values = box_ops.centerness(priors.centers[foreground], gt_boxes[gt_idxs[foreground]])
    return priors.strides.new_zeros(len(priors)).index_put_((foreground,), values)


def best_gt(score: Tensor, mask: Tensor) -> Tensor:
    """Give every prior the allowed ground truth of highest score, if it has any.

    Args:
        score: (M, R) float, M >= 1; ties go to the first ground truth. NaN and infinity never win.
        mask: (M, R) bool, the allowed pairs.

    Returns:
        (R,) int64, index of the ground truth or ``BACKGROUND``.
    """
    mask = mask & score.isfinite()
    gt_idxs = score.masked_fill(~mask, -torch.inf).argmax(dim=0)
    return torch.where(mask.any(dim=0), gt_idxs, BACKGROUND)


def hungarian(score: Tensor, mask: Tensor, unmatched: float = -1.0) -> Tensor:
    """One-to-one matching of the highest total score over the allowed pairs.

    Args:
        score: (M, R) float. NaN and infinity are never matched.
        mask: (M, R) bool, the allowed pairs.
        unmatched: see ``solvers.solve``, which says which of several best ones is taken.

    Returns:
        (R,) int64, index of the ground truth or ``BACKGROUND``.
    """
    gts, priors = torch.nonzero(mask, as_tuple=True)  # (P,)
    # One transfer: indices are exact in float64, float32 scores too.
    pairs = torch.stack([gts.double(), priors.double(), score[gts, priors].double()])
    gt_idxs, locations, scores = pairs.cpu().numpy()
    matched = solve(gt_idxs, locations, scores, len(score), score.shape[1], unmatched)
    return _to_gt_idxs(matched, score)


def hungarian_dense(score: Tensor, mask: Tensor, unmatched: float = -1.0) -> Tensor:
    """Matching of ``hungarian``; a ground truth without a location left takes any other one.

    What the original release does: which one, ``linear_sum_assignment`` decides.
    """
    dense = score.masked_fill(~mask | ~score.isfinite(), unmatched).cpu().numpy()
    return _to_gt_idxs(linear_sum_assignment(dense, maximize=True), score)


def _to_gt_idxs(matched: tuple[np.ndarray, np.ndarray], like: Tensor) -> Tensor:
    """(R,) int64 on the device of the scores ``like`` (M, R), from ground truths and priors."""
    gts, priors = (torch.from_numpy(idxs) for idxs in matched)
    gt_idxs = torch.full((like.shape[1],), BACKGROUND)
    gt_idxs[priors] = gts
    return gt_idxs.to(like.device)
