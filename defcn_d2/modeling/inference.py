"""Detections from the scores and boxes of all locations (method section 8)."""

from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from ..config.rules import ConfigError, unknown_name
from ..structures import Predictions, combined_score

# The logit of a probability that is 0 in every type of float; an infinite one would spoil the
# ranges that a quantised export is calibrated by.
_NEVER = -1e4


def best_class_only(predictions: Predictions) -> Predictions:
    """The same with a score of 0 for all classes of a location except the best.

    Of several that are equally good the first stays. The quality, which all classes of a location
    share, has no say.
    """
    logits = predictions.cls_logits  # (N, R, K)
    best = logits.argmax(dim=2, keepdim=True)
    others = torch.arange(logits.shape[2], device=logits.device) != best
    return replace(predictions, cls_logits=logits.masked_fill(others, _NEVER))


def find_candidates(
    predictions: Predictions,
    level_sizes: list[int],
    image_sizes: list[tuple[int, int]],
    *,
    score_thresh: float = 0.05,
    topk: int = 1000,
    nms_boxes: str = "",
) -> list[Instances]:
    """The best (location, class) pairs of every level, by ``Predictions.scores``.

    Where the quality is centerness, pairs are chosen, and compared with the threshold, by class
    alone.

    Args:
        predictions: of the batch.
        level_sizes: locations per level.
        image_sizes: (height, width) of the images without padding.
        score_thresh: pairs at or below this score are dropped; NaN is the best of all.
        nms_boxes: name in ``predictions.extra`` of the (N, R, 4) boxes by which ``keep_best``
            suppresses; they become the field of that purpose, ``nms_boxes``. "": ``pred_boxes``.
        topk: pairs per level, at most; and at most as many as the level has locations.

    Returns:
        per image ``pred_boxes``, ``scores`` and ``pred_classes``, by level, unlimited in number.
        Which of several equal scores are among the best of a level is not defined.
    """
    quality, centerness = predictions.quality(), predictions.centerness
    values, locations, classes = _best_per_level(  # (N, T)
        predictions.cls_logits, None if centerness else quality, level_sizes, topk
    )
    kept = ~(values <= score_thresh)  # NaN is kept, for an error later
    if quality is not None and centerness:
        values = combined_score(values, quality.gather(1, locations), centerness)
    results = []
    for i, image_size in enumerate(image_sizes):
        keep = torch.nonzero(kept[i]).squeeze(1)
        candidates = Instances(image_size)
        candidates.pred_boxes = Boxes(predictions.boxes[i, locations[i][keep]].float())
        if nms_boxes:
            others = _extra_boxes(predictions, nms_boxes)
            candidates.nms_boxes = Boxes(others[i, locations[i][keep]].float())
        candidates.scores = values[i][keep]
        candidates.pred_classes = classes[i][keep]
        results.append(candidates)
    return results


def find_topk(
    predictions: Predictions,
    image_sizes: list[tuple[int, int]],
    *,
    topk: int = 100,
) -> list[Instances]:
    """The best (location, class) pairs over all levels, without a threshold, best first.

    The path for deployment: a fixed number of detections by one top-k. With one-to-one
    assignment it gives the detections of ``find_candidates`` above its threshold.

    Args, returns: as ``find_candidates``.
    """
    values, locations, classes = _best_pairs(predictions.cls_logits, predictions.quality(), topk)
    if predictions.centerness:
        values = values.sqrt()
    boxes = predictions.boxes.float().gather(1, locations[..., None].expand(-1, -1, 4))  # (N, T, 4)
    return [
        Instances(
            image_sizes[i],
            pred_boxes=Boxes(boxes[i]),
            scores=values[i],
            pred_classes=classes[i],
        )
        for i in range(len(image_sizes))
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
    order = candidates.scores.sort(descending=True, stable=True).indices
    if nms_thresh is None:
        return _without_nms_boxes(candidates[order[:max_detections]])
    # Whether a box stays, only boxes of higher scores decide: often the best few are enough.
    count = 4 * max_detections
    while True:
        best = candidates[order[:count]]
        kept = _class_wise_nms(best, nms_thresh)
        if len(kept) >= max_detections or count >= len(order):
            return _without_nms_boxes(best[kept[:max_detections]])
        count *= 4


def _class_wise_nms(candidates: Instances, nms_thresh: float) -> Tensor:
    """Indices of those that stay, best first.

    Classes are moved apart by more than the boxes' extent, in float64: with torchvision's
    ``batched_nms`` those of different classes may meet where coordinates are negative.
    """
    decisive = "nms_boxes" if candidates.has("nms_boxes") else "pred_boxes"
    boxes = candidates.get(decisive).tensor.double()
    if len(boxes) == 0:
        return boxes.new_zeros(0, dtype=torch.int64)
    offsets = candidates.pred_classes * (boxes.max() - boxes.min() + 1)
    return nms(boxes + offsets[:, None], candidates.scores.double(), nms_thresh)


def _extra_boxes(predictions: Predictions, name: str) -> Tensor:
    if name not in predictions.extra:
        names = ["", *predictions.extra]
        raise ConfigError(unknown_name("MODEL.DEFCN.NMS_BOXES", name, names))
    return predictions.extra[name]


def _without_nms_boxes(detections: Instances) -> Instances:
    if detections.has("nms_boxes"):
        detections.remove("nms_boxes")
    return detections


def _best_per_level(
    cls_logits: Tensor, quality: Tensor | None, level_sizes: list[int], topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, T), locations (N, T) among all, and classes (N, T) of the best of each level."""
    found = []
    start = 0
    for size in level_sizes:
        values, locations, classes = _best_pairs(
            cls_logits[:, start : start + size],
            None if quality is None else quality[:, start : start + size],
            min(topk, size),
        )
        found.append((values, locations + start, classes))
        start += size
    values, locations, classes = (torch.cat(parts, dim=1) for parts in zip(*found))
    return values, locations, classes


def _best_pairs(
    cls_logits: Tensor, quality: Tensor | None, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of the highest scores sigmoid(cls) * quality, best first.

    The k best pairs lie at the k locations whose best classes score highest: the rest of the
    locations are looked at once, for that class, whatever their number of pairs with a high score.

    Args:
        cls_logits: (N, R, K) float.
        quality: (N, R) float32 in [0, 1], or None.
        topk: at most; there are no more than R * K.

    Returns:
        scores in float32, locations and classes, each (N, T).
    """
    num_locations, num_classes = cls_logits.shape[1:]
    candidates = None  # (N, topk) locations, where that leaves any out
    if topk < num_locations:
        best = cls_logits.amax(dim=2).float().sigmoid()  # (N, R)
        if quality is not None:
            best = best * quality
        candidates = best.topk(topk, sorted=False).indices
        if quality is not None:
            quality = quality.gather(1, candidates)
        cls_logits = cls_logits.gather(1, candidates[..., None].expand(-1, -1, num_classes))
    scores = cls_logits.float().sigmoid()  # (N, topk or R, K)
    if quality is not None:
        scores = scores * quality[..., None]
    values, pairs = scores.flatten(1).topk(min(topk, num_locations * num_classes))
    locations, classes = pairs // num_classes, pairs % num_classes
    if candidates is not None:
        locations = candidates.gather(1, locations)
    return values, locations, classes
