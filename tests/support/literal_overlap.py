"""The comparison of overlapping neighbours as its docstring states it, and grids to try it on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2.ops import overlap_with_better, overlap_with_better_reference

OVERLAP_IMPLEMENTATIONS = {
    "overlap_with_better": overlap_with_better,
    "reference": overlap_with_better_reference,
}

Cell = tuple[int, int, int]  # level, row, column


def literal_overlap(
    logits: Tensor, boxes: Tensor, level_shapes: Sequence[tuple[int, int]], tau: int = 2
) -> Tensor:
    """Every entry against every other cell of its image, one number at a time."""
    cells = [
        (level, row, column)
        for level, (height, width) in enumerate(level_shapes)
        for row in range(height)
        for column in range(width)
    ]
    largest = torch.zeros(logits.shape, dtype=torch.float64)
    for image in range(len(logits)):
        scores, corners = logits[image].tolist(), boxes[image].tolist()
        for own, cell in enumerate(cells):
            for near, other in enumerate(cells):
                if not _is_neighbour(cell, other, tau):
                    continue
                overlap = _iou(corners[own], corners[near])
                for k in range(logits.shape[2]):
                    higher = scores[near][k] > scores[own][k]
                    equal = scores[near][k] == scores[own][k]
                    if higher or (equal and near < own):
                        largest[image, own, k] = max(largest[image, own, k].item(), overlap)
    computed = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    return largest.to(computed).to(logits.dtype)


def _is_neighbour(cell: Cell, other: Cell, tau: int) -> bool:
    (level, row, column), (near_level, near_row, near_column) = cell, other
    if near_level == level:
        return other != cell and abs(near_row - row) <= 1 and abs(near_column - column) <= 1
    if tau == 0:
        return False
    if near_level == level + 1:
        return abs(near_row - row // 2) <= 1 and abs(near_column - column // 2) <= 1
    if near_level == level - 1:
        return near_row - 2 * row in range(-1, 3) and near_column - 2 * column in range(-1, 3)
    return False


def _iou(a: list[float], b: list[float]) -> float:
    if not all(map(math.isfinite, a + b)):
        return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inter / (sum(areas) - inter) if inter > 0 else 0.0


def halved(shape: tuple[int, int], num_levels: int) -> list[tuple[int, int]]:
    """Sizes of levels, each half of the one before, rounded up."""
    shapes = [shape] * min(num_levels, 1)
    while len(shapes) < num_levels:
        height, width = shapes[-1]
        shapes.append(((height + 1) // 2, (width + 1) // 2))
    return shapes


def random_grids(
    shape: tuple[int, int] = (9, 13),
    num_levels: int = 3,
    batch: int = 2,
    classes: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    box_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments by name: few values of logits and few corners, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    shapes = halved(shape, num_levels)
    num_cells = sum(height * width for height, width in shapes)
    logits = torch.randint(-3, 4, (batch, num_cells, classes), generator=generator)
    corners = torch.randint(0, 7, (batch, num_cells, 4), generator=generator)
    usual = torch.rand(batch, num_cells, 1, generator=generator) < 0.7  # 0 to 2, 4 to 6
    boxes = torch.where(usual, corners % 3 + torch.tensor([0, 0, 4, 4]), corners)
    return {
        "logits": logits.to(dtype),
        "boxes": boxes.to(box_dtype),
        "level_shapes": shapes,
        "tau": 2,
    }


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of (N, R, C) with other strides."""
    if layout == "transposed":  # as maps have it
        return x.mT.contiguous().mT
    if layout == "sliced":
        return torch.nn.functional.pad(x, (1, 2, 1, 0))[:, 1:, 1 : x.shape[2] + 1]
    return x


LAYOUTS = ["contiguous", "transposed", "sliced"]


@st.composite
def grid_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments by name: sizes, ties, boxes of all kinds, NaN, infinity, dtypes and layouts."""
    sides = st.integers(0, 7)
    case = random_grids(
        (draw(sides), draw(sides)),
        draw(st.integers(0, 4)),
        draw(st.integers(0, 2)),
        draw(st.sampled_from([0, 1, 1, 2, 5])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])),
        box_dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.float16])),
        seed=draw(st.integers(0, 2**16)),
    )
    for value in draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=3)):
        for name in ("logits", "boxes"):
            flat = case[name].view(-1)
            flat[torch.randperm(len(flat))[: len(flat) // 20]] = value
    for name in ("logits", "boxes"):
        case[name] = laid_out(case[name], draw(st.sampled_from(LAYOUTS)))
    case["tau"] = draw(st.sampled_from([0, 2]))
    return case
