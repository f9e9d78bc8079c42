"""Options of a dense criterion: soft labels, weights, losses of a subclass, progress."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Instances
from helpers import make_priors, random_instances, random_predictions, tiny_cfg
from slow_matching import giou, iou
from torch import Tensor

from defcn_d2.config.model_rules import check_model_config
from defcn_d2.config.rules import ConfigError
from defcn_d2.modeling.criterion import build_criteria
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.loss.class_losses import FocalLoss, QualityFocalLoss
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import (
    BACKGROUND,
    IGNORE,
    Assignment,
    Foreground,
    LossSum,
    Predictions,
    Priors,
)

NUM_CLASSES = 3
HEIGHT, WIDTH = 40, 56


class Fixed:
    """A matcher that knows the answers: assignments of the images that have ground truth."""

    progress = 0.0

    def __init__(self, assignments: list[Assignment]):
        self.assignments = iter(assignments)

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        return next(self.assignments)


def batch(counts: tuple[int, ...], branch: str) -> tuple[Priors, Predictions, list[Instances]]:
    """With the quality branch "none", "filter" or "centerness"."""
    priors = make_priors(HEIGHT, WIDTH)
    predictions = random_predictions(priors, NUM_CLASSES, len(counts), quality=branch != "none")
    predictions = replace(predictions, centerness=branch == "centerness")
    predictions.boxes.requires_grad_()
    gts = [
        random_instances(HEIGHT, WIDTH, count, NUM_CLASSES, seed=i, min_size=8)
        for i, count in enumerate(counts)
    ]
    return priors, predictions, gts


def random_assignments(counts: tuple[int, ...], weighted: bool) -> list[Assignment]:
    """One in eight locations is foreground, and as many are ignored."""
    num_priors = len(make_priors(HEIGHT, WIDTH))
    assignments = []
    for count in counts:
        draws = torch.rand(num_priors)
        gt_idxs = torch.randint(count, (num_priors,)).masked_fill(draws > 0.125, BACKGROUND)
        gt_idxs = gt_idxs.masked_fill(draws > 0.875, IGNORE)
        weights = 2 * torch.rand(num_priors) if weighted else None
        assignments.append(Assignment(gt_idxs, torch.rand(num_priors), weights))
    return assignments


def quality_focal(p: float, y: float) -> float:
    return abs(y - p) ** 2 * -(y * math.log(p) + (1 - y) * math.log(1 - p))


def literal_losses(
    predictions: Predictions,
    gts: list[Instances],
    assignments: list[Assignment],
    soft_labels: str = "none",
    weights: str = "class",
    class_weights: tuple[float, ...] = (1.0,) * NUM_CLASSES,
) -> dict[str, float]:
    """Of ``DenseCriterion`` with ``QualityFocalLoss``, location by location, in float64."""
    probabilities = predictions.cls_logits.double().sigmoid()
    quality = predictions.quality_logits
    if quality is not None and not predictions.centerness:
        probabilities = probabilities * quality.double().sigmoid()[..., None]
    classes = boxes = l1 = entropy = targets = 0.0
    count = 0
    for i, (gt, assignment) in enumerate(zip(gts, assignments, strict=True)):
        for r, g in enumerate(assignment.gt_idxs.tolist()):
            if g == IGNORE:
                continue
            weight = 1.0 if assignment.weights is None else assignment.weights[r].item()
            whole = weight if weights == "prior" else 1.0
            box = predictions.boxes[i, r].tolist()
            gt_box = gt.gt_boxes.tensor[g].tolist() if g >= 0 else [0, 0, 0, 0]
            soft = {
                "none": 1.0,
                "quality": assignment.quality[r].item(),
                "iou": iou(box, gt_box),
            }[soft_labels]
            for c in range(NUM_CLASSES):
                own = g >= 0 and c == gt.gt_classes[g]
                loss = quality_focal(probabilities[i, r, c].item(), soft if own else 0.0)
                classes += loss * (weight * class_weights[c] if own else whole)
            if g < 0:
                continue
            count += 1
            sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
            l1 += whole * sum(abs(a - b) / s for a, b, s in zip(box, gt_box, sides, strict=True))
            if predictions.centerness:
                target = assignment.quality[r].item()
                targets += target
                boxes += whole * target * (1 - giou(box, gt_box))
                p = quality[i, r].double().sigmoid().item()
                entropy -= whole * (target * math.log(p) + (1 - target) * math.log(1 - p))
            else:
                boxes += whole * (1 - giou(box, gt_box))
    losses = {
        "loss_cls": classes / count,
        "loss_box_l1": 3 * l1 / count,
        "loss_box_reg": 2 * boxes / (targets if predictions.centerness else count),
    }
    return losses | ({"loss_centerness": entropy / count} if predictions.centerness else {})


def found_losses(
    batch: tuple, assignments: list[Assignment], class_loss=None, **options: object
) -> dict[str, float]:
    criterion = DenseCriterion(
        matcher=Fixed(assignments),
        class_loss=class_loss or QualityFocalLoss(),
        l1_weight=3,
        **options,
    )
    return {name: loss.item() for name, loss in criterion(*batch).items()}


@pytest.mark.parametrize("weights", [None, "class", "prior"])
def test_class_weights(weights: str | None) -> None:
    """Beside the weights of the assignment, whatever those are of."""
    counts, factors = (3, 1, 4), (0.5, 3.0, 1.0)
    inputs, assignments = batch(counts, "none"), random_assignments(counts, bool(weights))
    options = {"weights": weights or "class", "class_weights": factors}
    found = found_losses(inputs, assignments, **options)
    assert found == pytest.approx(literal_losses(*inputs[1:], assignments, **options), rel=1e-5)
    criterion = DenseCriterion(matcher=None, class_loss=None, class_weights=factors)
    assert not criterion.state_dict()  # checkpoints stay what they were


@pytest.mark.parametrize("branch", ["none", "filter", "centerness"])
@pytest.mark.parametrize("soft_labels", ["none", "quality", "iou"])
def test_soft_labels(branch: str, soft_labels: str) -> None:
    counts = (3, 1, 4)
    inputs, assignments = batch(counts, branch), random_assignments(counts, weighted=False)
    found = found_losses(inputs, assignments, soft_labels=soft_labels)
    expected = literal_losses(*inputs[1:], assignments, soft_labels)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("branch", ["none", "filter", "centerness"])
@pytest.mark.parametrize("weights", ["class", "prior"])
def test_weights(branch: str, weights: str) -> None:
    """Of the foreground entry of the classes alone, or of all losses of a location."""
    counts = (3, 1, 4)
    inputs, assignments = batch(counts, branch), random_assignments(counts, weighted=True)
    found = found_losses(inputs, assignments, soft_labels="iou", weights=weights)
    expected = literal_losses(*inputs[1:], assignments, "iou", weights)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", ["class", "prior"])
def test_weights_beside_an_image_without_ground_truth(weights: str) -> None:
    """All of whose locations are background of weight 1."""
    inputs, assignments = batch((3, 0), "none"), random_assignments((3,), weighted=True)
    found = found_losses(inputs, assignments, weights=weights)
    nothing = torch.full_like(assignments[0].gt_idxs, BACKGROUND)
    of_all = [*assignments, Assignment(nothing, torch.zeros(len(nothing)))]
    expected = literal_losses(*inputs[1:], of_all, weights=weights)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", ["class", "prior"])
def test_weights_of_one_change_nothing(weights: str) -> None:
    inputs, plain = batch((3, 2), "filter"), random_assignments((3, 2), weighted=False)
    ones = [replace(a, weights=torch.ones_like(a.quality)) for a in plain]
    found = found_losses(inputs, ones, FocalLoss(), weights=weights)
    assert found == pytest.approx(found_losses(inputs, plain, FocalLoss()), rel=1e-6)


def test_soft_labels_teach_the_boxes_nothing() -> None:
    priors, predictions, gts = batch((3,), "none")
    predictions.cls_logits.requires_grad_()
    criterion = DenseCriterion(
        matcher=Fixed(random_assignments((3,), weighted=False)),
        class_loss=QualityFocalLoss(),
        soft_labels="iou",
        reg_weight=0,
    )
    loss = criterion(priors, predictions, gts)["loss_cls"]
    gradients = torch.autograd.grad(
        loss, [predictions.cls_logits, predictions.boxes], allow_unused=True
    )
    assert (gradients[0] != 0).any() and gradients[1] is None


def test_class_loss_with_a_count_of_its_own() -> None:
    class Counted:
        def __call__(self, logits: Tensor, *args: object, **kwargs: object) -> LossSum:
            return LossSum(logits.sum(), torch.tensor(5))

    inputs = batch((2,), "none")
    assignments = random_assignments((2,), weighted=False)
    found = found_losses(inputs, assignments, Counted(), cls_weight=3)
    expected = literal_losses(*inputs[1:], assignments)
    expected["loss_cls"] = 3 * inputs[1].cls_logits.sum().item() / 5
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_of_a_subclass() -> None:
    """From the pairs that have been gathered, each beside its place and its ground truth."""

    class Widths(DenseCriterion):
        def more_sums(
            self, priors: Priors, predictions: Predictions, foreground: Foreground
        ) -> dict[str, LossSum]:
            self.foreground = foreground
            widths = foreground.boxes[:, 2] - foreground.boxes[:, 0]
            gt_widths = foreground.gt_boxes[:, 2] - foreground.gt_boxes[:, 0]
            return {"loss_width": LossSum((widths - gt_widths).abs().sum(), foreground.count)}

    counts = (3, 0, 4)
    priors, predictions, gts = batch(counts, "none")
    assignments = random_assignments((3, 4), weighted=True)
    criterion = Widths(matcher=Fixed(assignments), class_loss=FocalLoss(), suffix="_x")
    losses = criterion(priors, predictions, gts)
    assert list(losses) == ["loss_cls_x", "loss_box_reg_x", "loss_width_x"]

    found, widths = criterion.foreground, []
    rows = [
        (i, r, g, assignments[k])
        for k, i in enumerate((0, 2))
        for r, g in enumerate(assignments[k].gt_idxs.tolist())
        if g >= 0
    ]
    assert len(found.images) == len(rows) == found.count
    for p, (i, r, g, assignment) in enumerate(rows):
        assert (found.images[p], found.locations[p]) == (i, r)
        assert found.gt_idxs[p] == g + (3 if i == 2 else 0)
        assert torch.equal(found.boxes[p], predictions.boxes[i, r])
        assert torch.equal(found.gt_boxes[p], gts[i].gt_boxes.tensor[g])
        assert found.gt_classes[p] == gts[i].gt_classes[g]
        assert found.entries[:, p].tolist() == [i, r, gts[i].gt_classes[g]]
        assert found.quality[p] == assignment.quality[r]
        assert found.weights[p] == assignment.weights[r]
        box, gt_box = predictions.boxes[i, r].tolist(), gts[i].gt_boxes.tensor[g].tolist()
        widths.append(abs((box[2] - box[0]) - (gt_box[2] - gt_box[0])))
    assert losses["loss_width_x"].item() == pytest.approx(sum(widths) / len(rows), rel=1e-5)


def test_progress_reaches_matcher_and_class_loss() -> None:
    class Scheduled(FocalLoss):
        progress = 0.0

    criterion = DenseCriterion(matcher=Fixed([]), class_loss=Scheduled())
    assert criterion.progress == 0
    criterion.set_progress(0.25)
    parts = (criterion, criterion.matcher, criterion.class_loss)
    assert [part.progress for part in parts] == [0.25] * 3
    without = DenseCriterion(matcher=POTO(), class_loss=FocalLoss())
    without.set_progress(0.5)
    assert without.progress == 0.5
    assert not hasattr(without.matcher, "progress") and not hasattr(without.class_loss, "progress")
    assert not criterion.state_dict()


NODE = "MODEL.DEFCN"
DENSE = f"{NODE}.CRITERION.DenseCriterion"


def test_options_of_the_config() -> None:
    cfg = tiny_cfg(
        *(f"{NODE}.LOSS.NAME", "QualityFocalLoss", f"{DENSE}.SOFT_LABELS", "iou"),
        *(f"{DENSE}.WEIGHTS", "prior", f"{DENSE}.FUSED", False),
        *(f"{NODE}.AUX.CRITERION.AuxiliaryCriterion.PREDICTIONS", "aux"),
    )
    check_model_config(cfg)
    main, auxiliary = build_criteria(cfg)
    assert isinstance(main.class_loss, QualityFocalLoss)
    assert isinstance(auxiliary.class_loss, FocalLoss)
    assert (main.soft_labels, main.weights, main.fused) == ("iou", "prior", False)
    assert (main.predictions, auxiliary.predictions) == ("main", "aux")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            [f"{DENSE}.SOFT_LABELS", "iou", f"{NODE}.LOSS.NAME", "APLoss"],
            f"{DENSE}.SOFT_LABELS is 'iou', but APLoss takes hard labels alone; set it to",
        ),
        (
            [f"{DENSE}.SOFT_LABELS", "quality", f"{NODE}.LOSS.NAME", "QualityFocalLoss"],
            f"{DENSE}.SOFT_LABELS 'quality' needs a matcher that gives a quality, not POTO; set "
            f"{NODE}.MATCHER.NAME to one of ATSS, ",
        ),
        (
            [
                *(f"{NODE}.AUX.CRITERION.AuxiliaryCriterion.SOFT_LABELS", "iou"),
                *(f"{NODE}.AUX.LOSS.NAME", "DRLoss"),
            ],
            f"{NODE}.AUX.CRITERION.AuxiliaryCriterion.SOFT_LABELS is 'iou', but DRLoss takes",
        ),
        (
            [f"{DENSE}.CLASS_WEIGHTS", "[1.0, 2.0]", f"{NODE}.NUM_CLASSES", 3],
            f"{DENSE}.CLASS_WEIGHTS has 2 factors, but must have one for each of the 3 classes",
        ),
    ],
)
def test_contradictions(opts: list, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_model_config(tiny_cfg(*opts))
