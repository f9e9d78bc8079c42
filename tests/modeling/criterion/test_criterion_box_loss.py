"""Box losses, their weights and the normaliser "quality", against the formulas written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.structures import Instances
from fvcore.nn import giou_loss
from helpers import make_cfg, make_instances, make_priors, random_instances, random_predictions
from slow_matching import centerness, locations
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from defcn_d2.modeling.criterion import build_criteria
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.loss.class_losses import SoftCrossEntropy
from defcn_d2.structures import BACKGROUND, Assignment, Predictions, Priors

NUM_CLASSES = 3
HEIGHT, WIDTH = 40, 56
COUNTS = (3, 0, 4)
LOSSES = {"giou": giou_loss, "ciou": complete_box_iou_loss}


class Fixed:
    """A matcher that knows the answers, of the images that have ground truth."""

    gives_quality = True

    def __init__(self, assignments: list[Assignment]):
        self.assignments = iter(assignments)

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        return next(self.assignments)


def batch() -> tuple[Priors, Predictions, list[Instances]]:
    """Predictions in float64 that take a gradient."""
    priors = make_priors(HEIGHT, WIDTH)
    found = random_predictions(priors, NUM_CLASSES, len(COUNTS), quality=False)
    predictions = replace(
        found,
        cls_logits=found.cls_logits.double().requires_grad_(),
        boxes=found.boxes.double().requires_grad_(),
    )
    gts = [
        random_instances(HEIGHT, WIDTH, count, NUM_CLASSES, seed=i, min_size=8)
        for i, count in enumerate(COUNTS)
    ]
    return priors, predictions, gts


def random_assignments(share: float = 0.2, scale: float = 1.0) -> list[Assignment]:
    num_priors = len(make_priors(HEIGHT, WIDTH))
    return [
        Assignment(
            torch.randint(count, (num_priors,)).masked_fill(
                torch.rand(num_priors) > share, BACKGROUND
            ),
            scale * torch.rand(num_priors),
        )
        for count in COUNTS
        if count
    ]


def literal(
    inputs: tuple, assignments: list[Assignment], box_loss: str, box_weights: str, normalizer: str
) -> dict[str, Tensor]:
    """Pair by pair, with a gradient."""
    priors, predictions, gts = inputs
    points, own = list(locations(priors)), iter(assignments)
    logits = predictions.cls_logits.float().double()  # classes are float32, as in the criterion
    labels = torch.zeros_like(logits)
    boxes, weights, qualities = [], [], []
    for i, gt in enumerate(gts):
        assignment = next(own) if len(gt) else None
        for r, g in enumerate(assignment.gt_idxs.tolist() if assignment else []):
            if g < 0:
                continue
            box, gt_box = predictions.boxes[i, r], gt.gt_boxes.tensor[g].double()
            quality = assignment.quality[r].item()
            labels[i, r, gt.gt_classes[g]] = quality
            boxes.append(LOSSES[box_loss](box[None], gt_box[None]).squeeze())
            qualities.append(quality)
            weights.append(
                {"none": 1.0, "quality": quality}.get(
                    box_weights, centerness(points[r], gt_box.tolist())
                )
            )
    p = logits.sigmoid()
    classes = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum()
    counts = {"foreground": len(boxes), "gts": sum(map(len, gts)), "quality": sum(qualities)}
    count = max(counts[normalizer], 1)
    divisor = count if box_weights == "none" else max(sum(weights), 1)
    return {
        "loss_cls": classes / count,
        "loss_box_reg": 2 * (torch.stack(boxes) * torch.tensor(weights)).sum() / divisor,
    }


@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
@pytest.mark.parametrize("box_weights", ["none", "quality", "centerness"])
@pytest.mark.parametrize("normalizer", ["foreground", "gts", "quality"])
def test_losses_and_gradients(box_loss: str, box_weights: str, normalizer: str) -> None:
    inputs, assignments = batch(), random_assignments()
    criterion = DenseCriterion(
        matcher=Fixed(assignments),
        class_loss=SoftCrossEntropy(),
        soft_labels="quality",
        box_loss=box_loss,
        box_weights=box_weights,
        normalizer=normalizer,
    )
    expected = literal(inputs, assignments, box_loss, box_weights, normalizer)
    found = criterion(*inputs)
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=1e-5
    )
    tensors = [inputs[1].cls_logits, inputs[1].boxes]
    of_found = torch.autograd.grad(sum(found.values()), tensors)
    of_expected = torch.autograd.grad(sum(expected.values()), tensors)
    for ours, theirs in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_small_sum_of_qualities_counts_as_one() -> None:
    inputs, assignments = batch(), random_assignments(share=0.1, scale=0.01)
    criterion = DenseCriterion(
        matcher=Fixed(assignments),
        class_loss=SoftCrossEntropy(),
        box_weights="quality",
        normalizer="quality",
    )
    sums = criterion.loss_sums(*inputs)
    assert all(0 < loss.count < 1 for loss in sums.values())
    criterion.matcher = Fixed(assignments)
    for name, loss in criterion(*inputs).items():
        torch.testing.assert_close(loss, sums[name].total.float())


@pytest.mark.parametrize("option", ["soft_labels", "box_weights", "normalizer"])
def test_a_quality_that_the_matcher_does_not_give(option: str) -> None:
    inputs = batch()
    without = [replace(assignment, quality=None) for assignment in random_assignments()]
    criterion = DenseCriterion(
        matcher=Fixed(without), class_loss=SoftCrossEntropy(), **{option: "quality"}
    )
    with pytest.raises(ValueError, match="a matcher that gives a quality is needed, not Fixed"):
        criterion(*inputs)


@pytest.mark.parametrize("config", ["TAL", "Dual-TAL", "OneToFew"])
def test_a_batch_without_ground_truth(config: str) -> None:
    """Finite, connected to all predictions, and no box loss."""
    priors, predictions, _ = batch()
    nothing = [make_instances(HEIGHT, WIDTH, [], [])] * len(COUNTS)
    for criterion in build_criteria(make_cfg(f"{config}.yaml")):
        losses = criterion(priors, predictions, nothing)
        classes, boxes = losses.values()
        assert classes > 0 and boxes == 0
        gradients = torch.autograd.grad(
            classes + boxes, [predictions.cls_logits, predictions.boxes]
        )
        assert gradients[0].ne(0).any() and gradients[1].eq(0).all()
