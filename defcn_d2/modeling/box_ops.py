"""Pure functions on boxes and locations. Boxes are (..., 4) xyxy, in pixels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The epsilon of every division by an area, method section 7.
EPS = torch.finfo(torch.float32).eps
# Detectron2's limit of the logarithm of a ratio of sides.
_SCALE_CLAMP = math.log(1000.0 / 16)
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


def deltas_to_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from the deltas of anchors, as Detectron2's ``Box2BoxTransform`` of weights 1 has them.

    By broadcasting and slices alone, which graphs for any runtime may have.

    Args:
        deltas: (..., R, 4): shifts of the centre in sides, and logarithms of the sides' ratios.
        anchors: (R, 4) xyxy.

    Returns:
        (..., R, 4) xyxy.
    """
    sides = anchors[:, 2:] - anchors[:, :2]  # (R, 2)
    centers = anchors[:, :2] + 0.5 * sides
    centers = deltas[..., :2] * sides + centers  # (..., R, 2)
    sides = deltas[..., 2:].clamp(max=_SCALE_CLAMP).exp() * sides
    return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], dim=-1)


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


def ciou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Complete IoU, element by element (arXiv 1911.08287).

    CIoU = IoU - d^2 / c^2 - a v  with the distance d of the centres, the diagonal c of the hull,
    v = (2 / pi (atan(w1 / h1) - atan(w2 / h2)))^2  and  a = v / (1 - IoU + v), which is a constant
    for the gradient. Divisors are at least eps, so that empty boxes have one, too.

    Args:
        boxes1, boxes2: (..., 4) xyxy that broadcast.

    Returns:
        (...,) at most 1.
    """
    overlap = iou(boxes1, boxes2)
    left1, top1, right1, bottom1 = boxes1.unbind(dim=-1)
    left2, top2, right2, bottom2 = boxes2.unbind(dim=-1)
    width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    diagonal = (width.square() + height.square()).clamp(min=EPS)  # squared
    distance = (  # between the centres, four times squared
        (left1 + right1 - left2 - right2).square() + (top1 + bottom1 - top2 - bottom2).square()
    )
    angle1 = torch.atan((right1 - left1) / (bottom1 - top1).clamp(min=EPS))
    angle2 = torch.atan((right2 - left2) / (bottom2 - top2).clamp(min=EPS))
    shape = (2 / math.pi * (angle1 - angle2)).square()
    with torch.no_grad():
        factor = shape / (1 - overlap + shape).clamp(min=EPS)
    return overlap - distance / (4 * diagonal) - factor * shape


def box_deltas(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes as offsets from anchors (arXiv 1311.2524, appendix C), which a head may predict.

    Of the centre, in sizes of the anchor; of the size, the logarithm of the ratio.

    Args:
        boxes, anchors: (..., 4) xyxy that broadcast; sizes are at least eps.

    Returns:
        (..., 4) of x, y, width and height.
    """
    size, anchor_size = ((x[..., 2:] - x[..., :2]).clamp(min=EPS) for x in (boxes, anchors))
    twice = boxes[..., :2] - anchors[..., :2] + boxes[..., 2:] - anchors[..., 2:]
    return torch.cat([twice / (2 * anchor_size), (size / anchor_size).log()], dim=-1)


def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU, element by element: (..., 4) and (..., 4) that broadcast to (...,) in [0, 1]."""
    inter = _intersection(boxes1, boxes2)
    return inter / (box_area(boxes1) + box_area(boxes2) - inter).clamp(min=EPS)


def centerness(centers: Tensor, boxes: Tensor) -> Tensor:
    """Centerness of locations in boxes, element by element (arXiv 1904.01355, eq. 3).

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Args:
        centers: (P, 2) xy of the locations.
        boxes: (P, 4) xyxy.

    Returns:
        (P,) in [0, 1]; 0 for locations outside of their box.
    """
    low, high = centers - boxes[:, :2], boxes[:, 2:] - centers  # (P, 2): l, t and r, b
    ratios = torch.minimum(low, high).clamp(min=0) / torch.maximum(low, high).clamp(min=EPS)
    return ratios.prod(dim=1).sqrt()


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
