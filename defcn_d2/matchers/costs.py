"""Scores of pairs of ground truth and prediction. All are (M, R), without an (M, R, K) tensor."""

from torch import Tensor

from ..box_ops import pairwise_iou
from ..structures import Predictions


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
