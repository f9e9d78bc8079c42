"""The comparison of a location with its neighbours whose boxes overlap its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Neighbouring cells by level: offsets of rows and columns from the cell, or from the first cell of
# the finer level that it covers, or from the cell of the coarser level that covers it.
_OWN_OR_COARSER, _FINER = (-1, 0, 1), (-1, 0, 1, 2)


def overlap_with_better_reference(
    logits: Tensor, boxes: Tensor, level_shapes: Sequence[tuple[int, int]], tau: int = 2
) -> Tensor:
    """:func:`defcn_d2.ops.overlap_with_better` as shifts, comparisons and maxima."""
    sizes = [height * width for height, width in level_shapes]
    maps = list(zip(level_shapes, logits.split(sizes, dim=1), boxes.split(sizes, dim=1)))
    grids = [
        (z.unflatten(1, shape), b.unflatten(1, shape))  # (N, H, W, K) and (N, H, W, 4)
        for shape, z, b in maps
    ]
    overlaps = []
    for level, (own, own_boxes) in enumerate(grids):
        largest = torch.zeros_like(own)
        for near, near_boxes, first in _neighbours(grids, level, tau):
            iou = _iou(own_boxes, near_boxes).to(own.dtype)[..., None]  # (N, H, W, 1)
            better = near >= own if first else near > own
            largest = torch.maximum(largest, iou * better)
        overlaps.append(largest.flatten(1, 2))
    return torch.cat(overlaps, dim=1)


def _neighbours(
    grids: Sequence[tuple[Tensor, Tensor]], level: int, tau: int
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Logits and boxes of one neighbour of every cell of a level at a time.

    The third value is whether the neighbour comes before the cell in the order of all locations.
    Beyond the edges logits are minus infinity, which beats nothing.
    """
    height, width = grids[level][0].shape[1:3]
    for other in range(max(0, level - tau // 2), min(len(grids), level + tau // 2 + 1)):
        offsets = _FINER if other < level else _OWN_OR_COARSER
        padded = [
            _pad(grids[other][0], level - other, height, width, -torch.inf),
            _pad(grids[other][1], level - other, height, width, 0.0),
        ]
        for down in offsets:
            for right in offsets:
                if other == level and (down, right) == (0, 0):
                    continue
                near, near_boxes = (
                    _shifted(x, level - other, down + 1, right + 1, height, width) for x in padded
                )
                yield near, near_boxes, other < level or other == level and (down, right) < (0, 0)


def _pad(x: Tensor, finer: int, height: int, width: int, value: float) -> Tensor:
    """One more cell (of (N, H, W, C)) before the first, and as many after as are looked at."""
    if finer == 1:
        bottom, right = 2 * height + 1 - x.shape[1], 2 * width + 1 - x.shape[2]
        return F.pad(x, (0, 0, 1, right, 1, bottom), value=value)
    return F.pad(x, (0, 0, 1, 1, 1, 1), value=value)


def _shifted(x: Tensor, finer: int, down: int, right: int, height: int, width: int) -> Tensor:
    """(N, height, width, C): the neighbour of every cell in the padded map of its level.

    Args:
        finer: 1 if ``x`` is of the level before the cells', 0 if of their own, -1 if of the next.
    """
    if finer == 1:
        return x[:, down : down + 2 * height - 1 : 2, right : right + 2 * width - 1 : 2]
    if finer == 0:
        return x[:, down : down + height, right : right + width]
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    part = x[:, down : down + rows, right : right + columns]
    return part.repeat_interleave(2, 1)[:, :height].repeat_interleave(2, 2)[:, :, :width]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (..., 4) and (..., 4); 0 where neither has an area."""
    left, top = torch.maximum(a[..., 0], b[..., 0]), torch.maximum(a[..., 1], b[..., 1])
    right, bottom = torch.minimum(a[..., 2], b[..., 2]), torch.minimum(a[..., 3], b[..., 3])
    inter = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    areas = [(x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b)]
    union = areas[0] + areas[1] - inter
    return torch.where(union > 0, inter / union, 0.0)
