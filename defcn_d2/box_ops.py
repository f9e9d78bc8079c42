"""Pure functions on boxes and locations. Boxes are (..., 4) xyxy, in pixels."""

import torch
from torch import Tensor

# The epsilon of every division by an area, method section 7.
EPS = torch.finfo(torch.float32).eps


def ltrb_to_boxes(ltrb: Tensor, centers: Tensor) -> Tensor:
    """Boxes from distances to their sides.

    Args:
        ltrb: (..., R, 4) distances in pixels from a location to left, top, right and bottom.
        centers: (R, 2) xy of the locations.

    Returns:
        (..., R, 4) xyxy.
    """
    return torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], dim=-1)


def pairwise_ltrb(centers: Tensor, boxes: Tensor) -> Tensor:
    """Distances from every location to the sides of every box.

    Args:
        centers: (R, 2) xy.
        boxes: (M, 4) or, where the box differs between locations, (M, R, 4).

    Returns:
        (M, R, 4) distances l, t, r, b; negative where the location lies beyond that side.
    """
    if boxes.dim() == 2:
        boxes = boxes[:, None]
    return torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], dim=-1)


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
    inter = box_area(_intersection(boxes1, boxes2))
    union = box_area(boxes1) + box_area(boxes2) - inter
    hull = box_area(
        torch.cat(
            [
                torch.minimum(boxes1[..., :2], boxes2[..., :2]),
                torch.maximum(boxes1[..., 2:], boxes2[..., 2:]),
            ],
            dim=-1,
        )
    )
    return inter / union.clamp(min=EPS) - (hull - union) / hull.clamp(min=EPS)


def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU, element by element: (..., 4) and (..., 4) that broadcast to (...,) in [0, 1]."""
    inter = box_area(_intersection(boxes1, boxes2))
    return inter / (box_area(boxes1) + box_area(boxes2) - inter).clamp(min=EPS)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every box of (M, 4) with every box of (R, 4): (M, R) in [0, 1]."""
    return iou(boxes1[:, None], boxes2[None])


def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(..., 4) xyxy; with a negative side where the boxes do not meet."""
    return torch.cat(
        [
            torch.maximum(boxes1[..., :2], boxes2[..., :2]),
            torch.minimum(boxes1[..., 2:], boxes2[..., 2:]),
        ],
        dim=-1,
    )
