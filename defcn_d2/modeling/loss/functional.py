"""Losses from logits and decoded boxes, as functions."""

from torch import Tensor
from torch.nn import functional as F

from ..box_ops import giou


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


def focal_loss(
    logits: Tensor, foreground: Tensor, alpha: float, gamma: float, valid: Tensor | None = None
) -> Tensor:
    """Sum of the focal loss over all entries.

    Takes the few foreground entries as indices in place of a one-hot target of the logits' size.

    Args:
        logits: (..., K) float, e.g. images by locations by classes.
        foreground: (D, P) int64, the D indices of each foreground entry, each at most once.
        valid: (...,) bool, False where a location counts for nothing; None: all count.

    Returns:
        scalar.
    """
    positive = logits[tuple(foreground)]
    correction = focal_positive(positive, alpha, gamma) - focal_negative(positive, alpha, gamma)
    background = focal_negative(logits, alpha, gamma)
    if valid is not None:
        background = background * valid[..., None]
    return background.sum() + correction.sum()


def giou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 - GIoU, element by element: (P, 4) and (P, 4) xyxy to (P,) in [0, 2]."""
    return 1 - giou(boxes, gt_boxes)


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
