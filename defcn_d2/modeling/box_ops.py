"""Pure functions on boxes and locations. Boxes are (..., 4) xyxy, in pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

# The epsilon of every division by an area, method section 7.
EPS = torch.finfo(torch.float32).eps
# Pairs that are computed at a time.
CHUNK = 2**18


def ltrb_to_boxes(ltrb: Tensor, centers: Tensor) -> Tensor:
    """Boxes from distances to their sides.

    Args:
        ltrb: (..., R, 4) distances in pixels from a location to left, top, right and bottom.
        centers: (R, 2) xy of the locations.

    Returns:
        (..., R, 4) xyxy.
    """
    return torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """(...,) areas; a box with a negative side has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU, element by element (arXiv 1902.09630).

    IoU = inter / max(union, eps);  GIoU = IoU - (hull - union) / max(hull, eps).

    Args:
        boxes1, boxes2: (..., 4) xyxy that broadcast.

    Returns:
        (...,) in [-1, 1].
    """
    inter = _intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - inter
    hull = _hull(boxes1, boxes2)
    return inter / union.clamp(min=EPS) - (hull - union) / hull.clamp(min=EPS)


def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU, element by element: (..., 4) and (..., 4) that broadcast to (...,) in [0, 1]."""
    inter = _intersection(boxes1, boxes2)
    return inter / (box_area(boxes1) + box_area(boxes2) - inter).clamp(min=EPS)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every box of (M, 4) with every box of (R, 4): (M, R) in [0, 1]."""
    return pairwise(iou, boxes1, boxes2)


def pairwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU of every box of (M, 4) with every box of (R, 4): (M, R) in [-1, 1]."""
    return pairwise(giou, boxes1, boxes2)


def pairwise(
    function: Callable[[Tensor, Tensor], Tensor], boxes1: Tensor, boxes2: Tensor
) -> Tensor:
    """A few of the M boxes at a time: intermediate results stay in the cache."""
    rows = max(CHUNK // max(len(boxes2), 1), 1)
    return torch.cat([function(part[:, None], boxes2[None]) for part in boxes1.split(rows)])


def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(...,) areas. One coordinate after the other: no (..., 4) tensor of broadcast boxes."""
    left1, top1, right1, bottom1 = boxes1.unbind(dim=-1)
    left2, top2, right2, bottom2 = boxes2.unbind(dim=-1)
    width = torch.minimum(right1, right2) - torch.maximum(left1, left2)
    height = torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)
    return width.clamp(min=0) * height.clamp(min=0)


def _hull(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(...,) areas of the smallest boxes around both."""
    left1, top1, right1, bottom1 = boxes1.unbind(dim=-1)
    left2, top2, right2, bottom2 = boxes2.unbind(dim=-1)
    width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    return width.clamp(min=0) * height.clamp(min=0)
