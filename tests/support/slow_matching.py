"""Cases for matchers, and the spec's quantities one pair at a time.

Coordinates are multiples of 1/4, so that distances, areas and intersections are exact in float32:
what is a tie on paper is a tie in the matcher, and a quotient is rounded once on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from helpers import make_instances, make_priors
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2.structures import Predictions, Priors

Box = Sequence[float]
NUM_CLASSES = 3
# From a few cells, with single-cell levels, to levels that hold more than 9 candidates.
IMAGE_SIZES = ((24, 40), (64, 64), (136, 200))


class Case(NamedTuple):
    """Arguments of a matcher."""

    priors: Priors
    predictions: Predictions
    gt: Instances


@dataclass(frozen=True)
class Location:
    """A prior, as the spec speaks of it."""

    index: int
    level: int
    stride: float
    x: float
    y: float


@st.composite
def boxes_of(draw: st.DrawFn, height: int, width: int) -> Box:
    """Ordinary, tiny, and partly or wholly beyond the image."""
    kind = draw(st.sampled_from(["inside", "inside", "tiny", "beyond"]))
    if kind == "beyond":
        left, top = draw(st.integers(-200, 4 * width)), draw(st.integers(-200, 4 * height))
        sides = st.integers(1, 4 * 600)
    else:
        left, top = draw(st.integers(0, 4 * width)), draw(st.integers(0, 4 * height))
        sides = st.integers(1, 24) if kind == "tiny" else st.integers(1, 4 * width)
    box = (left, top, left + draw(sides), top + draw(sides))
    return [value / 4 for value in box]


@st.composite
def cases(draw: st.DrawFn, max_gts: int = 8) -> Case:
    """One to ``max_gts`` ground truths; some of them equal, some of them in a heap."""
    height, width = draw(st.sampled_from(IMAGE_SIZES))
    boxes = draw(st.lists(boxes_of(height, width), min_size=1, max_size=max_gts))
    if draw(st.booleans()):  # a heap: copies, moved by less than a cell
        moves = draw(st.lists(st.integers(-3, 3), min_size=len(boxes), max_size=len(boxes)))
        boxes = [[value + move / 4 for value in boxes[0]] for move in moves]
    classes = draw(
        st.lists(st.integers(0, NUM_CLASSES - 1), min_size=len(boxes), max_size=len(boxes))
    )
    priors = make_priors(height, width)
    predictions = quarter_predictions(priors, draw(st.integers(0, 2**16)))
    return Case(priors, predictions, make_instances(height, width, boxes, classes))


def quarter_predictions(priors: Priors, seed: int) -> Predictions:
    """Predictions of one image: random logits, boxes around their locations, some empty."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(priors), 4)
    quarters = torch.randint(0, 9, shape, generator=generator) * (priors.strides[:, None] // 4)
    ltrb = quarters.float() / 4
    return Predictions(
        cls_logits=2 * torch.randn(len(priors), NUM_CLASSES, generator=generator),
        boxes=torch.cat([priors.centers - ltrb[:, :2], priors.centers + ltrb[:, 2:]], dim=1),
    )


def locations(priors: Priors) -> Iterator[Location]:
    levels = [level for level, size in enumerate(priors.level_sizes) for _ in range(size)]
    for index, (stride, (x, y)) in enumerate(
        zip(priors.strides.tolist(), priors.centers.tolist(), strict=True)
    ):
        yield Location(index, levels[index], stride, x, y)


def ltrb(location: Location, box: Box) -> tuple[float, float, float, float]:
    return location.x - box[0], location.y - box[1], box[2] - location.x, box[3] - location.y


def strictly_inside(location: Location, box: Box) -> bool:
    return box[0] < location.x < box[2] and box[1] < location.y < box[3]


def in_center_region(location: Location, box: Box, radius: float) -> bool:
    x, y, reach = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, radius * location.stride
    square = (x - reach, y - reach, x + reach, y + reach)
    return strictly_inside(location, square) and strictly_inside(location, box)


def tiny_enlarged(box: Box, strides: Sequence[float]) -> Box:
    """STAL: each side below the finest stride is as long as the second, about the same centre."""
    finest, second = strides[0], strides[min(1, len(strides) - 1)]
    box = list(box)
    for low, high in ((0, 2), (1, 3)):
        if box[high] - box[low] < finest:
            middle = (box[low] + box[high]) / 2
            box[low], box[high] = middle - second / 2, middle + second / 2
    return box


def in_size_range(location: Location, box: Box, ranges: Sequence[Sequence[float]]) -> bool:
    low, high = ranges[location.level]
    return low <= max(ltrb(location, box)) <= high


def area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def intersection(a: Box, b: Box) -> float:
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Rounded to float32, as the matchers have it."""
    inter = intersection(a, b)
    eps = np.finfo(np.float32).eps
    return float(np.float32(inter) / np.float32(max(area(a) + area(b) - inter, eps)))


def giou(a: Box, b: Box) -> float:
    inter = intersection(a, b)
    union = area(a) + area(b) - inter
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    eps = float(np.finfo(np.float32).eps)
    return inter / max(union, eps) - (hull - union) / max(hull, eps)


def ciou(a: Box, b: Box) -> float:
    inter = intersection(a, b)
    eps = float(np.finfo(np.float32).eps)
    overlap = inter / max(area(a) + area(b) - inter, eps)
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    angles = [math.atan((x[2] - x[0]) / max(x[3] - x[1], eps)) for x in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    factor = v / max(1 - overlap + v, eps)
    return overlap - (dx**2 + dy**2) / max(width**2 + height**2, eps) - factor * v


def distance(location: Location, box: Box) -> float:
    """From the centre of the box; rounded to float32, as the matchers have it."""
    dx = np.float32(location.x - (box[0] + box[2]) / 2)
    dy = np.float32(location.y - (box[1] + box[3]) / 2)
    return float(np.sqrt(dx * dx + dy * dy))


def centerness(location: Location, box: Box) -> float:
    left, top, right, bottom = ltrb(location, box)
    horizontal = max(min(left, right) / max(left, right), 0)
    return (horizontal * max(min(top, bottom) / max(top, bottom), 0)) ** 0.5


def boxes_of_gt(gt: Instances) -> list[Box]:
    return gt.gt_boxes.tensor.tolist()


def assign(
    num_priors: int, wishes: dict[int, list[int]], better: Sequence[Sequence[float]]
) -> Tensor:
    """Contested locations to the ground truth of the higher ``better[g][r]``, then the first.

    Args:
        wishes: ground truth to the locations that it wants.
    """
    gt_idxs = torch.full((num_priors,), -1)
    for r in range(num_priors):
        wanting = [g for g in sorted(wishes) if r in wishes[g]]
        if wanting:
            gt_idxs[r] = max(wanting, key=lambda g: better[g][r])
    return gt_idxs
