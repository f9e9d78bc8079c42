"""Overlaps with better neighbours for graphs: all neighbours of a level at once, few operators.

It takes the memory of all neighbours together, which training has not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def overlap_with_better_plain(
    logits: Tensor, boxes: Tensor, level_shapes: Sequence[tuple[int, int]], tau: int
) -> Tensor:
    """:func:`defcn_d2.ops.overlap_with_better` of slices, concatenations and arithmetic.

    For inference. There is no gather, range or expansion among them, which not every compiler has.
    """
    classes = logits.shape[2]
    flat = torch.cat([logits, boxes], dim=2).split([h * w for h, w in level_shapes], dim=1)
    maps = [x.unflatten(1, (1, *shape)) for x, shape in zip(flat, level_shapes)]  # (N, 1, H, W, C)
    overlaps = []
    for level, own in enumerate(maps):
        largest = None
        for other in range(max(0, level - tau // 2), min(len(maps), level + tau // 2 + 1)):
            near = _neighbours(maps[other], level - other, *level_shapes[level])
            iou = _iou(own[..., classes:], near[..., classes:])  # (N, J, H, W, 1)
            theirs, ours = near[..., :classes], own[..., :classes]
            if other == level:  # the four before the cell, the cell, and the four after it
                better = torch.cat([theirs[:, :4] >= ours, theirs[:, 4:] > ours], dim=1)
            else:
                better = theirs >= ours if other < level else theirs > ours
            found = torch.where(better, iou, 0.0).amax(dim=1)  # (N, H, W, K)
            largest = found if largest is None else torch.maximum(largest, found)
        assert largest is not None
        overlaps.append(largest.flatten(1, 2))
    return torch.cat(overlaps, dim=1).to(logits.dtype)


def _neighbours(x: Tensor, finer: int, height: int, width: int) -> Tensor:
    """(N, J, height, width, C): the J neighbours of every cell, row by row, in a map of a level.

    Beyond the edges are zeros: boxes of no size, which overlap nothing.

    Args:
        x: (N, 1, H, W, C) of the level.
        finer: 1 if it is the one before the cells', 0 if their own, -1 if the next.
    """
    rows, columns = x.shape[2:4]
    if finer == 1:  # the 4 x 4 around the 2 x 2 that a cell covers
        x = F.pad(x, (0, 0, 1, 2 * width + 1 - columns, 1, 2 * height + 1 - rows))
        x = torch.cat([x[:, :, i : i + 2 * height - 1 : 2] for i in range(4)], dim=1)
        return torch.cat(
            [x[:, i : i + 1, :, j : j + 2 * width - 1 : 2] for i in range(4) for j in range(4)],
            dim=1,
        )
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    x = torch.cat([x[:, :, i : i + rows] for i in range(3)], dim=1)
    x = torch.cat([x[:, i : i + 1, :, j : j + columns] for i in range(3) for j in range(3)], dim=1)
    if finer == -1:
        x = torch.stack([x, x], dim=3).flatten(2, 3)[:, :, :height]
        x = torch.stack([x, x], dim=4).flatten(3, 4)[:, :, :, :width]
    return x


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (..., 4) and (..., 4): (..., 1); 0 where neither has an area."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.split(1, dim=-1), b.split(1, dim=-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    inter = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
    return torch.where(union > 0, inter / union, 0.0)
