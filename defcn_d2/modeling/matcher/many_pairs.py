"""Pairs with their scores; where boxes hold too many locations to list them, those that matter."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from ...structures import Predictions, Priors
from .functional import inside_center
from .pairs import AllPairs, Pairs, TooManyPairs, center_pairs

#: Predictions of a batch with ``Pairs``, or of an image with ``AllPairs``, to their scores.
Score = Callable[[Predictions, Any], Tensor]
# Scores of so many pairs are made at a time.
CHUNK = 2**24


def scored_pairs(
    priors: Priors,
    predictions: Predictions,
    gt_instances: list[Instances],
    radius: float,
    score: Score,
    enlarge_tiny: bool = False,
) -> tuple[Pairs, Tensor]:
    """The pairs of ``center_pairs``, and their scores.

    A thousand boxes as large as the image hold 20 million locations and more. Of each ground truth
    only the M best are needed, M being the ground truths of its image: whatever the others take,
    one of those is left. ``hungarian_pairs`` and ``argmax_pairs`` find the same optimum in them.

    Args:
        predictions: of the batch.
        gt_instances, radius, enlarge_tiny: as of ``center_pairs``.
    """
    try:
        pairs = center_pairs(priors, gt_instances, radius, enlarge_tiny)
    except TooManyPairs:
        return best_pairs(priors, predictions, gt_instances, radius, score, enlarge_tiny)
    return pairs, score(predictions, pairs)


def best_pairs(
    priors: Priors,
    predictions: Predictions,
    gt_instances: list[Instances],
    radius: float,
    score: Score,
    enlarge_tiny: bool = False,
) -> tuple[Pairs, Tensor]:
    """The M allowed pairs of highest finite score of each ground truth, as ``scored_pairs``.

    Which of several equal scores come last among them is not defined.
    """
    rows = max(CHUNK // len(priors), 1)
    gt_idxs, images, locations, scores = [], [], [], []
    first = 0
    for image, gt in enumerate(gt_instances):
        for start in range(0, len(gt), rows):
            some = gt[start : start + rows]
            values = score(predictions[image], AllPairs.of(some))  # (m, R)
            allowed = inside_center(priors, some.gt_boxes.tensor, radius, enlarge_tiny)
            allowed &= values.isfinite()
            values = values.masked_fill(~allowed, -torch.inf)
            best = values.topk(min(len(gt), len(priors)), dim=1).indices.sort(dim=1).values
            values = values.gather(1, best)  # (m, M), by location
            some_idxs, columns = (values > -torch.inf).nonzero(as_tuple=True)
            gt_idxs.append(some_idxs + first + start)
            images.append(torch.full_like(some_idxs, image))
            locations.append(best[some_idxs, columns])
            scores.append(values[some_idxs, columns])
        first += len(gt)
    of_batch = torch.cat(gt_idxs)  # (P,)
    pairs = Pairs(
        gt_idxs=of_batch,
        images=torch.cat(images),
        locations=torch.cat(locations),
        allowed=torch.ones_like(of_batch, dtype=torch.bool),
        gt_boxes=torch.cat([gt.gt_boxes.tensor for gt in gt_instances])[of_batch],
        gt_classes=torch.cat([gt.gt_classes for gt in gt_instances])[of_batch],
        num_gts=[len(gt) for gt in gt_instances],
        num_locations=len(priors),
    )
    return pairs, torch.cat(scores)
