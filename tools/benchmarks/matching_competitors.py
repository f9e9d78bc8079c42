"""POTO's qualities and assignment: over the full matrix, plainly and with care, and over pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from defcn_d2.modeling.matcher.costs import prediction_quality
from defcn_d2.modeling.matcher.functional import hungarian_dense, inside_center
from defcn_d2.modeling.matcher.pairs import AllPairs
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import BACKGROUND, Predictions, Priors


@dataclass(frozen=True)
class Problem:
    """A batch as a matcher is given it, and the matcher."""

    priors: Priors
    predictions: Predictions
    gt_instances: list[Instances]
    matcher: POTO


def plain(problem: Problem) -> list[Tensor]:
    """Quality of every pair, -1 outside of the prior, scipy's solver: image by image."""
    return [
        _plain(problem.priors, problem.predictions[i], gt, problem.matcher)
        for i, gt in enumerate(problem.gt_instances)
    ]


def _plain(priors: Priors, predictions: Predictions, gt: Instances, matcher: POTO) -> Tensor:
    """(R,) int64, as ``Assignment.gt_idxs``."""
    boxes, centers = gt.gt_boxes.tensor, priors.centers
    probability = predictions.cls_logits[:, gt.gt_classes].sigmoid()
    assert predictions.quality_logits is not None
    probability = (probability * predictions.quality_logits.sigmoid()[:, None]).t()
    iou = pairwise_iou(gt.gt_boxes, Boxes(predictions.boxes.float()))
    quality = probability ** (1 - matcher.alpha) * iou**matcher.alpha

    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    if matcher.radius:
        middle, reach = (low + high) / 2, priors.strides[:, None] * matcher.radius
        low, high = torch.maximum(middle - reach, low), torch.minimum(middle + reach, high)
    inside = torch.cat([centers - low, high - centers], dim=-1).amin(dim=-1) > 0
    quality = quality.masked_fill(~inside, -1).cpu()

    gts, locations = (
        torch.from_numpy(idxs) for idxs in linear_sum_assignment(quality, maximize=True)
    )
    reached = quality[gts, locations] >= 0
    gt_idxs = torch.full((len(priors),), BACKGROUND)
    gt_idxs[locations[reached]] = gts[reached]
    return gt_idxs.to(boxes.device)


def careful(problem: Problem) -> list[Tensor]:
    """As ``plain``, but no (M, R, 4) tensor, and intermediate results that stay in the cache.

    It is how ``KEEP_UNREACHABLE`` matches, which has to look at all pairs.
    """
    results, matcher = [], problem.matcher
    for i, gt in enumerate(problem.gt_instances):
        boxes, predictions = gt.gt_boxes.tensor, problem.predictions[i]
        quality = prediction_quality(predictions, AllPairs.of(gt), matcher.alpha)
        allowed = inside_center(problem.priors, boxes, matcher.radius)
        gt_idxs = hungarian_dense(quality, allowed)
        locations = torch.arange(len(gt_idxs), device=gt_idxs.device)
        reached = allowed[gt_idxs, locations]  # of background, the last row
        results.append(gt_idxs.masked_fill(~reached, BACKGROUND))
    return results


def over_pairs(problem: Problem) -> list[Tensor]:
    """The matcher of this package."""
    results = problem.matcher.match_batch(problem.priors, problem.predictions, problem.gt_instances)
    return [result.gt_idxs for result in results]


COMPETITORS: dict[str, Callable[[Problem], list[Tensor]]] = {
    "plain full matrix": plain,
    "careful full matrix": careful,
    "pairs": over_pairs,
}


def assert_equal(problem: Problem) -> None:
    """All competitors match the same locations to the same ground truths, up to rounding.

    Where the pairs differ, the totals of the qualities must not differ by more than float32 rounds.
    """
    expected = plain(problem)
    for competitor in (careful, over_pairs):
        for image, gt_idxs in enumerate(competitor(problem)):
            if not torch.equal(gt_idxs, expected[image]):
                actual, best = (_total(problem, image, x) for x in (gt_idxs, expected[image]))
                torch.testing.assert_close(actual, best, rtol=1e-6, atol=0)


def _total(problem: Problem, image: int, gt_idxs: Tensor) -> Tensor:
    """Total of the matching in the full matrix, in float64."""
    locations = torch.nonzero(gt_idxs >= 0).squeeze(1)
    gt, predictions = problem.gt_instances[image][gt_idxs[locations]], problem.predictions[image]
    assert predictions.quality_logits is not None
    probability = predictions.cls_logits[locations, gt.gt_classes].double().sigmoid()
    probability *= predictions.quality_logits[locations].double().sigmoid()
    iou = pairwise_iou(gt.gt_boxes, Boxes(predictions.boxes[locations].float())).diag().double()
    alpha = problem.matcher.alpha
    return (probability ** (1 - alpha) * iou**alpha + 1).sum()
