"""From scores and boxes of all locations to detections (method section 8)."""

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .structures import Predictions


def find_candidates(
    predictions: Predictions,
    level_sizes: list[int],
    image_sizes: list[tuple[int, int]],
    *,
    centerness: bool = False,
    score_thresh: float = 0.05,
    topk: int = 1000,
) -> list[Instances]:
    """The best (location, class) pairs of every level.

    Args:
        predictions: of the batch.
        level_sizes: locations per level.
        image_sizes: (height, width) of the images without padding.
        centerness: the quality branch is centerness: pairs are chosen by class score, and the
            score of a detection is sqrt(class * centerness). Else it multiplies the class score.
        score_thresh: pairs at or below this score are dropped.
        topk: pairs per level, at most; and at most as many as the level has locations.

    Returns:
        per image ``pred_boxes``, ``scores`` and ``pred_classes``, by level, unlimited in number.
    """
    scores = predictions.cls_logits.float().sigmoid()
    if predictions.quality_logits is not None and not centerness:
        scores = scores * predictions.quality_logits.float().sigmoid().unsqueeze(-1)
    values, locations, classes = _topk_per_level(scores, level_sizes, topk)
    kept = values > score_thresh
    if centerness:
        assert predictions.quality_logits is not None
        quality = predictions.quality_logits.float().sigmoid().gather(1, locations)
        values = (values * quality).sqrt()
    results = []
    for i, image_size in enumerate(image_sizes):
        keep = kept[i]
        candidates = Instances(image_size)
        candidates.pred_boxes = Boxes(predictions.boxes[i, locations[i][keep]].float())
        candidates.scores = values[i][keep]
        candidates.pred_classes = classes[i][keep]
        results.append(candidates)
    return results


def find_topk(
    predictions: Predictions,
    image_sizes: list[tuple[int, int]],
    *,
    centerness: bool = False,
    topk: int = 100,
) -> list[Instances]:
    """The best (location, class) pairs over all levels, without a threshold, best first.

    The path for deployment: a fixed number of detections by one top-k. With one-to-one
    assignment it gives the detections of ``find_candidates`` above its threshold.

    Args, returns: as ``find_candidates``.
    """
    scores = predictions.cls_logits.float().sigmoid()
    if predictions.quality_logits is not None:
        scores = scores * predictions.quality_logits.float().sigmoid().unsqueeze(-1)
        if centerness:
            scores = scores.sqrt()
    num_images, num_locations, num_classes = scores.shape
    values, indices = scores.flatten(1).topk(min(topk, num_locations * num_classes))
    locations, classes = indices // num_classes, indices % num_classes
    boxes = predictions.boxes.float().gather(1, locations[..., None].expand(-1, -1, 4))
    return [
        Instances(
            image_sizes[i],
            pred_boxes=Boxes(boxes[i]),
            scores=values[i],
            pred_classes=classes[i],
        )
        for i in range(num_images)
    ]


def keep_best(
    candidates: Instances, max_detections: int, nms_thresh: float | None = None
) -> Instances:
    """The detections of an image, best first.

    Args:
        candidates: from ``find_candidates``.
        max_detections: how many to keep.
        nms_thresh: IoU above which the lower of two scores of one class is dropped; None: no
            non-maximum suppression.
    """
    if nms_thresh is None:
        order = candidates.scores.sort(descending=True, stable=True).indices
    else:
        order = batched_nms(
            candidates.pred_boxes.tensor, candidates.scores, candidates.pred_classes, nms_thresh
        )
    return candidates[order[:max_detections]]


def _topk_per_level(
    scores: Tensor, level_sizes: list[int], topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (N, T), locations (N, T) among all, and classes (N, T) of the best of each level."""
    num_classes = scores.shape[2]
    values, locations, classes = [], [], []
    start = 0
    for level, size in zip(scores.split(level_sizes, dim=1), level_sizes):
        value, index = level.flatten(1).topk(min(topk, size))
        values.append(value)
        locations.append(index // num_classes + start)
        classes.append(index % num_classes)
        start += size
    return torch.cat(values, 1), torch.cat(locations, 1), torch.cat(classes, 1)
