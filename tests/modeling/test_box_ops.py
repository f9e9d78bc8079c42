"""Functions on boxes against loops over pairs of Python numbers."""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss as fvcore_giou_loss
from helpers import random_boxes
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import centerness as slow_centerness
from slow_matching import ciou as slow_ciou
from torch import Tensor
from torchvision.ops import complete_box_iou, complete_box_iou_loss

from defcn_d2.modeling.box_ops import (
    EPS,
    box_area,
    centerness,
    ciou,
    deltas_to_boxes,
    giou,
    iou,
    ltrb_to_boxes,
    pairwise_iou,
)

Box = Sequence[float]
NUMBERS = st.floats(-300, 300, width=32)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6)


@st.composite
def boxes(draw: st.DrawFn, max_size: int = 6) -> Tensor:
    """(1 ... max_size, 4) float64 with sides of 0 and more."""
    sides = st.one_of(st.just(0.0), st.floats(0, 400, width=32))
    corners = st.tuples(NUMBERS, NUMBERS, sides, sides)
    drawn = draw(st.lists(corners, min_size=1, max_size=max_size))
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in drawn], dtype=torch.float64)


def slow_area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def slow_overlap(a: Box, b: Box) -> tuple[float, float]:
    """IoU and GIoU."""
    inter = slow_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = slow_area(a) + slow_area(b) - inter
    hull = slow_area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    overlap = inter / max(union, EPS)
    return overlap, overlap - (hull - union) / max(hull, EPS)


@given(POINTS, st.data())
def test_boxes_from_distances(points: list[tuple[float, float]], data: st.DataObject) -> None:
    centers = torch.tensor(points, dtype=torch.float64)
    gt_boxes = data.draw(boxes())
    ltrb = torch.tensor(
        [
            [[x - x1, y - y1, x2 - x, y2 - y] for x, y in points]
            for x1, y1, x2, y2 in gt_boxes.tolist()
        ],
        dtype=torch.float64,
    )
    decoded = ltrb_to_boxes(ltrb.view(-1, len(points), 4), centers)
    torch.testing.assert_close(decoded, gt_boxes[:, None].expand_as(decoded))


@given(boxes(), boxes())
def test_overlaps_of_all_pairs(boxes1: Tensor, boxes2: Tensor) -> None:
    ious = pairwise_iou(boxes1, boxes2)
    gious = giou(boxes1[:, None], boxes2[None])
    cious = ciou(boxes1[:, None], boxes2[None])
    assert box_area(boxes1).tolist() == [slow_area(box) for box in boxes1.tolist()]
    for i, a in enumerate(boxes1.tolist()):
        for j, b in enumerate(boxes2.tolist()):
            slow_iou, slow_giou = slow_overlap(a, b)
            assert ious[i, j].item() == pytest.approx(slow_iou, abs=1e-12)
            assert gious[i, j].item() == pytest.approx(slow_giou, abs=1e-12)
            assert iou(boxes1[i], boxes2[j]) == ious[i, j]
            assert cious[i, j].item() == pytest.approx(slow_ciou(a, b), abs=1e-6)
    assert ((ious >= 0) & (ious <= 1 + 1e-12)).all()
    assert ((gious >= -1 - 1e-12) & (gious <= ious + 1e-12)).all()
    assert ((cious >= -2) & (cious <= ious)).all()


@given(boxes())
def test_overlap_with_itself(same: Tensor) -> None:
    proper = box_area(same) > EPS
    expected = torch.where(proper, 1.0, box_area(same) / EPS)
    torch.testing.assert_close(iou(same, same), expected, check_dtype=False)
    # A box without area is its own hull, which has none either.
    torch.testing.assert_close(giou(same, same), expected, check_dtype=False)


def test_giou_of_boxes_apart() -> None:
    a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([90.0, 0, 100, 10])
    assert giou(a, b).item() == pytest.approx(-0.8)  # 1000 of hull, 200 of union
    assert iou(a, b) == 0


def test_areas_below_one_count_as_they_are() -> None:
    a, b = torch.tensor([0.0, 0, 0.1, 0.1]), torch.tensor([0.0, 0, 0.1, 0.2])
    assert iou(a, b).item() == pytest.approx(0.5)
    assert giou(a, b).item() == pytest.approx(0.5)
    # Below epsilon a union counts as epsilon: 1e-8 / 1.19e-7.
    dot = torch.tensor([0.0, 0, 1e-4, 1e-4])
    assert iou(dot, dot).item() == pytest.approx(1e-8 / EPS)


def test_giou_against_fvcore() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (random_boxes(100, 200, 200, generator).double() for _ in range(2))
    torch.testing.assert_close(1 - giou(a, b), fvcore_giou_loss(a, b), rtol=0, atol=1e-6)


def test_gradient_of_giou() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (random_boxes(40, 40, 30, generator).double() for _ in range(2))
    assert torch.autograd.gradcheck(giou, (a.requires_grad_(), b.requires_grad_()))


def test_ciou_and_its_gradient_against_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (random_boxes(100, 200, 200, generator).double() for _ in range(2))
    torch.testing.assert_close(ciou(a[:, None], b[None]), complete_box_iou(a, b), rtol=0, atol=1e-6)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (1 - ciou(ours, b)).sum().backward()
    complete_box_iou_loss(theirs, b, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_ciou_of_boxes_of_one_shape_and_of_one_centre() -> None:
    a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 0, 15, 10])
    assert ciou(a, b).item() == pytest.approx(1 / 3 - 25 / (15**2 + 10**2))
    wide, high = torch.tensor([0.0, 4, 10, 6]), torch.tensor([4.0, 0, 6, 10])
    v = 4 / math.pi**2 * (math.atan(5) - math.atan(0.2)) ** 2
    overlap = 4 / 36
    assert ciou(wide, high).item() == pytest.approx(overlap - v / (1 - overlap + v) * v)


@given(POINTS, st.data())
def test_centerness(points: list[tuple[float, float]], data: st.DataObject) -> None:
    (box,) = data.draw(boxes(max_size=1)).tolist()
    found = centerness(torch.tensor(points).double(), torch.tensor([box] * len(points)).double())
    for (x, y), value in zip(points, found.tolist(), strict=True):
        if box[0] < x < box[2] and box[1] < y < box[3]:
            assert value == pytest.approx(slow_centerness(SimpleNamespace(x=x, y=y), box))
        else:
            assert value == 0


@pytest.mark.parametrize("overlap_of", [giou, ciou])
@pytest.mark.parametrize(
    "predicted",
    [
        pytest.param([5.0, 5, 5, 5], id="point inside"),
        pytest.param([0.0, 0, 0, 10], id="line on the side"),
        pytest.param([50.0, 50, 50, 50], id="point outside"),
        pytest.param([8.0, 8, 2, 2], id="negative sides"),
        pytest.param([0.0, 0, 10, 10], id="the box itself"),
    ],
)
@pytest.mark.parametrize("gt", [[0.0, 0, 10, 10], [5.0, 5, 5, 5]])
def test_degenerate_boxes_have_finite_overlap_and_gradient(
    overlap_of, predicted: list[float], gt: list[float]
) -> None:
    box = torch.tensor(predicted, requires_grad=True)
    overlap = overlap_of(box, torch.tensor(gt))
    assert -2 <= overlap.item() <= 1
    overlap.backward()
    assert box.grad.isfinite().all()


def test_deltas_are_those_of_detectron2() -> None:
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    anchors = random_boxes(300, 400, 20, torch.Generator().manual_seed(0))
    deltas = 3 * torch.randn(2, 20, 4)  # some beyond the limit of the sides
    expected = transform.apply_deltas(deltas.flatten(0, 1), anchors.repeat(2, 1)).view(2, 20, 4)
    assert torch.equal(deltas_to_boxes(deltas, anchors), expected)
