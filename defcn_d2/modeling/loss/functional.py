"""Losses from logits and decoded boxes, as functions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..box_ops import box_deltas, ciou, giou


def focal_negative(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of background, (1 - alpha) p^gamma (-log(1 - p)) (arXiv 1708.02002, eq. 5).

    Args:
        logits: (...,) float.

    Returns:
        (...,) non-negative.
    """
    return (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)


def focal_positive(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of foreground, alpha (1 - p)^gamma (-log p) (arXiv 1708.02002, eq. 5).

    Args:
        logits: (...,) float.

    Returns:
        (...,) non-negative.
    """
    return alpha * (-logits).sigmoid() ** gamma * F.softplus(-logits)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss of a number between two bins (arXiv 2006.04388, eq. 6).

    -((i + 1 - y) log S_i + (y - i) log S_{i+1}),  i = floor(y), is least where these two bins share
    all of the probability S and their expectation is the target y.

    Args:
        logits: (..., n + 1) float, of the bins 0 to n.
        targets: (...,) float, taken to be within [0, n - 0.1].

    Returns:
        (...,) non-negative.
    """
    targets = targets.clamp(min=0, max=logits.shape[-1] - 1 - 0.1)
    lower = targets.long().unsqueeze(-1)  # (..., 1)
    upper_share = targets - targets.floor()
    log_probability = logits.log_softmax(dim=-1)
    at_lower = log_probability.gather(-1, lower).squeeze(-1)
    at_upper = log_probability.gather(-1, lower + 1).squeeze(-1)
    return -((1 - upper_share) * at_lower + upper_share * at_upper)


def giou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 - GIoU, element by element: (P, 4) and (P, 4) xyxy to (P,) in [0, 2]."""
    return 1 - giou(boxes, gt_boxes)


def ciou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 - CIoU, element by element: (P, 4) and (P, 4) xyxy to (P,), non-negative."""
    return 1 - ciou(boxes, gt_boxes)


def delta_loss(
    boxes: Tensor, gt_boxes: Tensor, anchors: Tensor, beta: float, weights: Sequence[float]
) -> Tensor:
    """Smooth L1 loss of the boxes as ``box_deltas`` of their anchors, summed over the four.

    Args:
        boxes, gt_boxes, anchors: (P, 4) xyxy in pixels.
        beta: difference up to which the loss is quadratic, x^2 / (2 beta).
        weights: factors of the four deltas.

    Returns:
        (P,) non-negative.
    """
    difference = box_deltas(boxes, anchors) - box_deltas(gt_boxes, anchors)
    # factors one by one: a tensor of them would be a copy from the host, which waits for a GPU
    scaled = [delta * weight for delta, weight in zip(difference.unbind(dim=1), weights)]
    difference = torch.stack(scaled, dim=1)
    nothing = torch.zeros_like(difference)
    return F.smooth_l1_loss(difference, nothing, beta=beta, reduction="none").sum(dim=1)


def l1_loss(boxes: Tensor, gt_boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Sum of the absolute differences of the coordinates, in sizes of the image.

    Args:
        boxes, gt_boxes: (P, 4) xyxy in pixels.
        image_sizes: (P, 2) height and width of the input without padding, in pixels.

    Returns:
        (P,) non-negative.
    """
    scale = image_sizes.flip(1).repeat(1, 2)
    return ((boxes - gt_boxes).abs() / scale).sum(dim=1)
