"""Scores and costs of pairs of ground truth and location, the terms that matchers add up.

All are (M, R), without an (M, R, K) tensor.
"""

import torch
from torch import Tensor

from ..box_ops import box_area, giou, pairwise_iou
from ..losses import focal_negative, focal_positive
from ..structures import Predictions, Priors


def class_probability(predictions: Predictions, gt_classes: Tensor, fused: bool) -> Tensor:
    """Predicted score of each ground truth's class.

    Args:
        predictions: of one image.
        gt_classes: (M,) int64.
        fused: multiply by the probability of the quality branch, where there is one.

    Returns:
        (M, R) float32 in [0, 1].
    """
    probability = predictions.cls_logits[:, gt_classes].float().sigmoid()
    if fused and predictions.quality_logits is not None:
        probability = probability * predictions.quality_logits.float().sigmoid()[:, None]
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
    iou = pairwise_iou(gt_boxes, predictions.boxes.float())
    return probability ** (1 - alpha) * iou**alpha


def nearness(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Minus the Euclidean distance in pixels of every location from the centre of every box.

    Args:
        gt_boxes: (M, 4) xyxy.

    Returns:
        (M, R), at most 0.
    """
    gt_centers = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2
    return -(priors.centers - gt_centers).pow(2).sum(dim=-1).sqrt()


def smallness(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Minus the area of every box, the same at all locations: a view (M, R), at most 0."""
    return -box_area(gt_boxes)[:, None].expand(-1, len(priors))


def focal_cost(logits: Tensor, gt_classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss over all classes of every location, were it to learn each ground truth's class.

    Args:
        logits: (R, K) float.
        gt_classes: (M,) int64.
        alpha, gamma: of the focal loss (arXiv 1708.02002, eq. 5).

    Returns:
        (M, R) float32, non-negative.
    """
    logits = logits.float()
    background = focal_negative(logits, alpha, gamma)
    foreground = focal_positive(logits, alpha, gamma)
    # The one-hot target differs from background in a single class.
    return (background.sum(dim=1, keepdim=True) + (foreground - background)[:, gt_classes]).t()


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


def pairwise_giou(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
    """GIoU of every box of (M, 4) with every box of (R, 4): (M, R) in [-1, 1]."""
    return giou(gt_boxes[:, None], boxes.float()[None])


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
