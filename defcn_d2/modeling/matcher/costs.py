"""Scores and costs of pairs of ground truth and location, the terms that matchers add up.

They are (M, R), without an (M, R, K) tensor, or (P,), of the pairs that are allowed. What is made
of a prediction that is NaN or infinite is not finite itself, and loses to all that is.
"""

import torch
from torch import Tensor

from ...structures import Predictions, Priors
from ..box_ops import box_area, iou, pairwise_iou
from ..loss.functional import focal_negative, focal_positive
from .pairs import Pairs


def class_probability(predictions: Predictions, gt_classes: Tensor, fused: bool) -> Tensor:
    """Predicted score of each ground truth's class.

    Args:
        predictions: of one image.
        gt_classes: (M,) int64.
        fused: multiply by the probability of the quality branch, where there is one.

    Returns:
        (M, R) float32 in [0, 1].
    """
    probability = _nan_for_infinity(predictions.cls_logits[:, gt_classes]).sigmoid_()
    if fused and predictions.quality_logits is not None:
        probability *= _nan_for_infinity(predictions.quality_logits).sigmoid_()[:, None]
    return probability.t()


def prediction_quality(
    predictions: Predictions, gt_boxes: Tensor, gt_classes: Tensor, alpha: float, fused: bool
) -> Tensor:
    """POTO's quality p^(1 - a) * iou^a of each pair (arXiv 2012.03544, eq. 3).

    Args:
        predictions: of one image.
        gt_boxes: (M, 4) xyxy.
        gt_classes: (M,) int64.
        alpha: weight a of the IoU, in [0, 1].
        fused: as in ``class_probability``.

    Returns:
        (M, R) float32 in [0, 1].
    """
    probability = class_probability(predictions, gt_classes, fused)
    overlap = pairwise_iou(gt_boxes, _nan_for_infinity(predictions.boxes))
    return probability.pow_(1 - alpha) * overlap.pow_(alpha)


def pair_quality(predictions: Predictions, pairs: Pairs, alpha: float) -> Tensor:
    """``prediction_quality``, fused, of the pairs alone: (P,) float32 in [0, 1].

    Args:
        predictions: of all images.
    """
    where = (pairs.images, pairs.locations)
    logits = predictions.cls_logits[where + (pairs.gt_classes,)]
    probability = _nan_for_infinity(logits).sigmoid_()
    if predictions.quality_logits is not None:
        probability *= _nan_for_infinity(predictions.quality_logits[where]).sigmoid_()
    overlap = iou(pairs.gt_boxes, _nan_for_infinity(predictions.boxes[where]))
    return probability.pow_(1 - alpha) * overlap.pow_(alpha)


def nearness(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Minus the Euclidean distance in pixels of every location from the centre of every box.

    Args:
        gt_boxes: (M, 4) xyxy.

    Returns:
        (M, R), at most 0.
    """
    x, y = priors.centers.unbind(dim=1)
    gt_x, gt_y = ((gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2)[:, :, None].unbind(dim=1)
    return ((x - gt_x).square_() + (y - gt_y).square_()).sqrt_().neg_()


def smallness(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Minus the area of every box, the same at all locations: a view (M, R), at most 0."""
    return -box_area(gt_boxes)[:, None].expand(-1, len(priors))


def focal_cost(predictions: Predictions, gt_classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss over all classes of every location, were it to learn each ground truth's class.

    Args:
        predictions: of one image; the quality branch is folded in, where there is one.
        gt_classes: (M,) int64.
        alpha, gamma: of the focal loss (arXiv 1708.02002, eq. 5).

    Returns:
        (M, R) float32, non-negative.
    """
    logits = _fused(predictions)
    background = focal_negative(logits, alpha, gamma)
    foreground = focal_positive(logits, alpha, gamma)
    # The one-hot target differs from background in a single class.
    return (background.sum(dim=1, keepdim=True) + (foreground - background)[:, gt_classes]).t()


def pair_focal_cost(predictions: Predictions, pairs: Pairs, alpha: float, gamma: float) -> Tensor:
    """``focal_cost`` of the pairs alone: (P,) float32, non-negative.

    Args:
        predictions: of all images.
    """
    index: tuple[Tensor, ...] = (pairs.images, pairs.locations)
    if len(pairs.images) < predictions.boxes.shape[:2].numel():
        predictions = predictions[index]
        index = (torch.arange(len(pairs.images), device=pairs.images.device),)
    logits = _fused(predictions)
    background = focal_negative(logits, alpha, gamma).sum(dim=-1)[index]
    own = logits[index + (pairs.gt_classes,)]
    return background + (focal_positive(own, alpha, gamma) - focal_negative(own, alpha, gamma))


def focal_difference_cost(probability: Tensor, alpha: float, gamma: float) -> Tensor:
    """What the focal loss gains by a location's turning foreground (arXiv 2012.05780, eq. 2).

    Args:
        probability: (M, R) in [0, 1], of each ground truth's class.

    Returns:
        (M, R), negative where the class is likely already.
    """
    foreground = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    background = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return foreground - background


def l1_cost(gt_boxes: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Sum of the absolute differences of the four coordinates, in sizes of the image.

    Args:
        gt_boxes: (M, 4) xyxy in pixels.
        boxes: (R, 4) xyxy in pixels.
        image_size: (height, width) of the input without padding.

    Returns:
        (M, R), non-negative.
    """
    height, width = image_size
    scale = gt_boxes.new_tensor([width, height, width, height])
    return torch.cdist(gt_boxes / scale, boxes.float() / scale, p=1)


def _fused(predictions: Predictions) -> Tensor:
    """``predictions.fused()``, NaN where one of the two logits is infinite."""
    quality = predictions.quality_logits
    return Predictions(
        _nan_for_infinity(predictions.cls_logits),
        predictions.boxes,
        None if quality is None else _nan_for_infinity(quality),
    ).fused()


def _nan_for_infinity(x: Tensor) -> Tensor:
    """A copy in float32: the infinite logit of a probability of 1 must not win."""
    return x.float().nan_to_num(torch.nan, torch.nan, torch.nan)
