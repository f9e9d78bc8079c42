"""``DenseCriterion`` against the formulas written out, location by location, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Instances
from helpers import make_priors, random_instances, random_predictions, tiny_cfg
from slow_matching import giou
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from defcn_d2.config.rules import ArgumentError
from defcn_d2.modeling.criterion import build_criteria
from defcn_d2.modeling.criterion.dense import AuxiliaryCriterion, DenseCriterion
from defcn_d2.modeling.loss.class_losses import FocalLoss
from defcn_d2.modeling.matcher.fcos import FCOS
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.modeling.matcher.poto_aux import POTOAux
from defcn_d2.structures import BACKGROUND, IGNORE, Assignment, Predictions, Priors

NUM_CLASSES = 3
HEIGHT, WIDTH = 40, 56


class Fixed:
    """A matcher that knows the answers: assignments of the images, in order."""

    def __init__(self, gt_idxs: Tensor, quality: Tensor | None = None):
        self.gt_idxs, self.quality, self.calls = gt_idxs, quality, 0

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        i, self.calls = self.calls, self.calls + 1
        return Assignment(self.gt_idxs[i], None if self.quality is None else self.quality[i])


def dense(matcher, **arguments: object) -> DenseCriterion:
    return DenseCriterion(matcher=matcher, class_loss=FocalLoss(), **arguments)


def batch(counts: tuple[int, ...], branch: str = "filter") -> tuple[Priors, Predictions, list]:
    """With the quality branch "none", "filter" or "centerness"."""
    priors = make_priors(HEIGHT, WIDTH)
    predictions = random_predictions(priors, NUM_CLASSES, len(counts), quality=branch != "none")
    predictions = replace(predictions, centerness=branch == "centerness")
    for tensor in (predictions.cls_logits, predictions.boxes, predictions.quality_logits):
        if tensor is not None:
            tensor.requires_grad_()
    gts = [
        random_instances(HEIGHT, WIDTH, count, NUM_CLASSES, seed=i, min_size=8)
        for i, count in enumerate(counts)
    ]
    return priors, predictions, gts


def random_assignment(counts: tuple[int, ...], num_priors: int, ignored: bool = False) -> Tensor:
    """(N, R): one in eight locations learns a ground truth, and as many are ignored if asked."""
    draws = torch.rand(len(counts), num_priors)
    gt_idxs = torch.full_like(draws, BACKGROUND, dtype=torch.int64)
    for i, count in enumerate(counts):
        gt_idxs[i] = torch.where(draws[i] < 0.125, torch.randint(count, (num_priors,)), gt_idxs[i])
    if ignored:
        gt_idxs[draws > 0.875] = IGNORE
    return gt_idxs


def slow_focal(p: float, foreground: bool, alpha: float = 0.25, gamma: float = 2) -> float:
    if foreground:
        return -alpha * (1 - p) ** gamma * math.log(p)
    return -(1 - alpha) * p**gamma * math.log(1 - p)


def slow_sums(
    predictions: Predictions, gts: list[Instances], gt_idxs: Tensor, fused: bool
) -> tuple[float, list[tuple[int, int, float]]]:
    """Sum of the focal loss, and (image, location, GIoU loss) of the foreground."""
    probabilities = predictions.cls_logits.double().sigmoid()
    if fused:
        probabilities = probabilities * predictions.quality_logits.double().sigmoid()[..., None]
    total, boxes = 0.0, []
    for i, gt in enumerate(gts):
        for r, g in enumerate(gt_idxs[i].tolist()):
            for c in range(NUM_CLASSES):
                if g != IGNORE:
                    foreground = g >= 0 and c == gt.gt_classes[g]
                    total += slow_focal(probabilities[i, r, c].item(), foreground)
            if g >= 0:
                overlap = giou(predictions.boxes[i, r].tolist(), gt.gt_boxes.tensor[g].tolist())
                boxes.append((i, r, 1 - overlap))
    return total, boxes


@pytest.mark.parametrize(("branch", "fused"), [("none", True), ("filter", True), ("filter", False)])
@pytest.mark.parametrize("ignored", [True, False])
def test_classes_and_boxes(branch: str, fused: bool, ignored: bool) -> None:
    counts = (3, 1, 4)
    priors, predictions, gts = batch(counts, branch)
    gt_idxs = random_assignment(counts, len(priors), ignored)
    criterion = dense(Fixed(gt_idxs), reg_weight=2, cls_weight=3, fused=fused)
    losses = criterion(priors, predictions, gts)
    total, boxes = slow_sums(predictions, gts, gt_idxs, fused=fused and branch == "filter")
    assert len(boxes) > 5
    assert losses.keys() == {"loss_cls", "loss_box_reg"}
    assert losses["loss_cls"].item() == pytest.approx(3 * total / len(boxes), rel=1e-5)
    expected = 2 * sum(loss for _, _, loss in boxes) / len(boxes)
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 for loss in losses.values())


def test_centerness() -> None:
    counts = (2, 3)
    priors, predictions, gts = batch(counts, "centerness")
    gt_idxs = random_assignment(counts, len(priors))
    target = torch.rand(gt_idxs.shape)
    criterion = dense(Fixed(gt_idxs, target), reg_weight=1)
    losses = criterion(priors, predictions, gts)
    total, boxes = slow_sums(predictions, gts, gt_idxs, fused=False)
    weights = [target[i, r].item() for i, r, _ in boxes]
    assert losses["loss_cls"].item() == pytest.approx(total / len(boxes), rel=1e-5)
    weighted = sum(w * loss for w, (_, _, loss) in zip(weights, boxes, strict=True))
    assert losses["loss_box_reg"].item() == pytest.approx(weighted / sum(weights), rel=1e-5)
    entropy = 0.0
    for w, (i, r, _) in zip(weights, boxes, strict=True):
        p = predictions.quality_logits[i, r].double().sigmoid().item()
        entropy -= w * math.log(p) + (1 - w) * math.log(1 - p)
    assert losses["loss_centerness"].item() == pytest.approx(entropy / len(boxes), rel=1e-5)


def test_sum_of_centerness_targets_counts_at_least_one() -> None:
    priors, predictions, gts = batch((1,), "centerness")
    gt_idxs = torch.full((1, len(priors)), BACKGROUND)
    gt_idxs[0, 5] = 0
    target = torch.full(gt_idxs.shape, 0.25)
    criterion = dense(Fixed(gt_idxs, target), reg_weight=1)
    losses = criterion(priors, predictions, gts)
    ((_, _, loss),) = slow_sums(predictions, gts, gt_idxs, fused=False)[1]
    assert losses["loss_box_reg"].item() == pytest.approx(0.25 * loss, rel=1e-5)


def test_coordinates_in_sizes_of_the_image_over_the_number_of_ground_truths() -> None:
    counts = (2, 0, 3)
    priors, predictions, gts = batch(counts, "none")
    gt_idxs = random_assignment((2, 1, 3), len(priors))
    gt_idxs = gt_idxs[[0, 2]]  # no matcher is called for the image without ground truth
    criterion = dense(Fixed(gt_idxs), cls_weight=2, reg_weight=2, l1_weight=5, normalizer="gts")
    losses = criterion(priors, predictions, gts)
    background = torch.full((1, len(priors)), BACKGROUND)
    gt_idxs = torch.cat([gt_idxs[:1], background, gt_idxs[1:]])
    total, boxes = slow_sums(predictions, gts, gt_idxs, fused=False)
    l1 = 0.0
    for i, r, _ in boxes:
        gt = gts[i].gt_boxes.tensor[gt_idxs[i, r]]
        l1 += sum(abs(predictions.boxes[i, r] - gt) / torch.tensor([WIDTH, HEIGHT] * 2)).item()
    assert losses["loss_cls"].item() == pytest.approx(2 * total / 5, rel=1e-5)
    assert losses["loss_box_l1"].item() == pytest.approx(5 * l1 / 5, rel=1e-5)
    expected = 2 * sum(loss for _, _, loss in boxes) / 5
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("off", ["cls", "reg", "l1"])
def test_a_loss_of_weight_0_is_left_out(off: str) -> None:
    priors, predictions, gts = batch((2,))
    gt_idxs = random_assignment((2,), len(priors))
    weights = {"cls_weight": 1, "reg_weight": 2, "l1_weight": 3}
    names = {"cls": "loss_cls", "reg": "loss_box_reg", "l1": "loss_box_l1"}
    every = dense(Fixed(gt_idxs), **weights)(priors, predictions, gts)
    weights[f"{off}_weight"] = 0
    losses = dense(Fixed(gt_idxs), **weights)(priors, predictions, gts)
    assert losses.keys() == set(names.values()) - {names[off]}
    assert all(torch.equal(loss, every[name]) for name, loss in losses.items())


@pytest.mark.parametrize("branch", ["none", "filter", "centerness"])
@pytest.mark.parametrize("counts", [(0,), (0, 0), (2, 0)])
def test_images_without_ground_truth(branch: str, counts: tuple[int, ...]) -> None:
    priors, predictions, gts = batch(counts, branch)
    criterion = dense(FCOS() if branch == "centerness" else POTO(), l1_weight=1)
    losses = criterion(priors, predictions, gts)
    tensors = [predictions.cls_logits, predictions.boxes, predictions.quality_logits]
    gradients = torch.autograd.grad(
        sum(losses.values()), [tensor for tensor in tensors if tensor is not None]
    )
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients)
    if sum(counts) == 0:
        gt_idxs = torch.full((len(counts), len(priors)), BACKGROUND)
        total, _ = slow_sums(predictions, gts, gt_idxs, fused=branch == "filter")
        assert losses.pop("loss_cls").item() == pytest.approx(total, rel=1e-5)
        assert all(loss == 0 for loss in losses.values())
        assert (gradients[1] == 0).all()
    else:  # the empty image teaches classes alone
        assert (gradients[0][1] != 0).any()
        assert (gradients[1][1] == 0).all()
        assert (gradients[1][0] != 0).any()


def test_matching_has_no_gradient_and_one_image_at_a_time() -> None:
    priors, predictions, gts = batch((1, 0, 2))
    seen = []

    def matcher(priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        assert not torch.is_grad_enabled()
        seen.append((predictions.boxes.shape, len(gt)))
        return POTO()(priors, predictions, gt)

    dense(matcher)(priors, predictions, gts)
    assert seen == [((len(priors), 4), 1), ((len(priors), 4), 2)]


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_of_the_classification_loss(fused: bool) -> None:
    """Of the loss in probabilities, through the product with the filter."""
    counts = (2,)
    priors, predictions, gts = batch(counts)
    gt_idxs = random_assignment(counts, len(priors))
    criterion = dense(Fixed(gt_idxs), reg_weight=0, fused=fused)
    inputs = [predictions.cls_logits] + [predictions.quality_logits] * fused
    actual = torch.autograd.grad(criterion(priors, predictions, gts)["loss_cls"], inputs)

    p = predictions.cls_logits.double().sigmoid()
    if fused:
        p = p * predictions.quality_logits.double().sigmoid()[..., None]
    target = torch.zeros_like(p, dtype=torch.bool)
    for r, g in enumerate(gt_idxs[0].tolist()):
        if g >= 0:
            target[0, r, gts[0].gt_classes[g]] = True
    loss = torch.where(target, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    loss = loss.sum() / (gt_idxs >= 0).sum()
    for gradient, expected in zip(actual, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_batch_is_the_weighted_mean_of_its_images() -> None:
    """Sums are over locations, and the number of foreground ones is that of the batch."""
    priors, predictions, gts = batch((3, 5))
    criterion = dense(POTO())
    losses = criterion(priors, predictions, gts)
    images, counts = [], []
    for i in range(2):
        images.append(criterion(priors, predictions[i][None], gts[i : i + 1]))
        counts.append(criterion.metrics["num_foreground"].item())
    for name, loss in losses.items():
        expected = sum(n * image[name] for n, image in zip(counts, images, strict=True))
        torch.testing.assert_close(loss, expected / sum(counts))


def test_order_of_ground_truths_does_not_matter() -> None:
    priors, predictions, gts = batch((6,))
    (criterion, auxiliary) = build_criteria(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES))
    for module in (criterion, auxiliary):
        expected = module(priors, predictions, gts)
        losses = module(priors, predictions, [gts[0][torch.tensor([3, 0, 5, 4, 1, 2])]])
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-6, atol=0)


def test_figures() -> None:
    priors, predictions, gts = batch((3, 2))
    gt_idxs = torch.full((2, len(priors)), BACKGROUND)
    gt_idxs[0, [1, 4, 9]] = torch.tensor([0, 2, 2])
    gt_idxs[0, 20] = IGNORE
    criterion = dense(Fixed(gt_idxs), suffix="_x")
    losses = criterion(priors, predictions, gts)
    assert losses.keys() == {"loss_cls_x", "loss_box_reg_x"}
    assert {name: value.item() for name, value in criterion.metrics.items()} == {
        "num_foreground_x": 1.5,  # three locations, and five ground truths less two, on two images
        "num_empty_boxes_x": 0.0,
        "num_unmatched_gt_x": 1.5,
    }
    assert not any(value.requires_grad for value in criterion.metrics.values())


def test_figures_without_ground_truth() -> None:
    priors, predictions, gts = batch((0, 0))
    criterion = dense(POTO())
    criterion(priors, predictions, gts)
    assert [value.item() for value in criterion.metrics.values()] == [0, 0, 0]


def test_boxes_without_a_size_are_counted() -> None:
    priors, predictions, gts = batch((3, 2))
    gt_idxs = torch.full((2, len(priors)), BACKGROUND)
    gt_idxs[0, [1, 4, 9]] = torch.tensor([0, 2, 2])
    with torch.no_grad():
        predictions.boxes[0, [1, 9], 2:] = predictions.boxes[0, [1, 9], :2]
    criterion = dense(Fixed(gt_idxs))
    criterion(priors, predictions, gts)
    assert criterion.metrics["num_empty_boxes"].item() == 1.0  # two on two images


class Waits(TorchDispatchMode):
    """Operators by which a program would wait for a GPU: values that come to the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "_local_scalar_dense" in name or "nonzero" in name or "is_nonzero" in name:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("branch", ["none", "filter", "centerness"])
def test_losses_and_figures_wait_for_the_number_of_pairs_alone(branch: str) -> None:
    counts = (3, 2)
    priors, predictions, gts = batch(counts, branch)
    gt_idxs = random_assignment(counts, len(priors))
    criterion = dense(Fixed(gt_idxs, torch.rand(gt_idxs.shape)), l1_weight=1)
    with Waits() as waits:
        criterion.loss_sums(priors, predictions, gts)
    assert waits.seen == ["aten.nonzero.default"]


def test_criteria_of_the_config() -> None:
    node = "MODEL.DEFCN"
    cfg = tiny_cfg(
        *(f"{node}.LOSS.FocalLoss.ALPHA", 0.3, f"{node}.LOSS.FocalLoss.GAMMA", 1.0),
        *(f"{node}.AUX.LOSS.FocalLoss.GAMMA", 1.5, f"{node}.AUX.MATCHER.POTOAux.TOPK", 7),
        *(f"{node}.CRITERION.DenseCriterion.CLS_WEIGHT", 4.0),
        *(f"{node}.CRITERION.DenseCriterion.REG_WEIGHT", 5.0),
        *(f"{node}.AUX.CRITERION.AuxiliaryCriterion.CLS_WEIGHT", 6.0),
    )
    main, auxiliary = build_criteria(cfg)
    assert vars(main.class_loss) == {"alpha": 0.3, "gamma": 1.0}
    assert vars(auxiliary.class_loss) == {"alpha": 0.25, "gamma": 1.5}
    assert (main.cls_weight, main.reg_weight, main.fused) == (4, 5, True)
    # The auxiliary loss is on the plain class logits.
    assert (auxiliary.cls_weight, auxiliary.reg_weight, auxiliary.fused) == (6, 0, False)
    assert isinstance(auxiliary.matcher, POTOAux)
    assert auxiliary.matcher.topk == 7
    (alone,) = build_criteria(tiny_cfg(f"{node}.AUX.ENABLED", False))
    assert isinstance(alone.matcher, POTO)
    priors, predictions, gts = batch((2,))
    assert main(priors, predictions, gts).keys() == {"loss_cls", "loss_box_reg"}
    assert auxiliary(priors, predictions, gts).keys() == {"loss_cls_aux"}


def test_auxiliary_loss_is_of_plain_logits_over_its_own_foreground() -> None:
    priors, predictions, gts = batch((3,))
    auxiliary = AuxiliaryCriterion(matcher=POTOAux(), class_loss=FocalLoss(), suffix="_aux")
    gt_idxs = POTOAux()(priors, predictions[0], gts[0]).gt_idxs[None]
    count = int((gt_idxs >= 0).sum())
    assert count > 1
    total, _ = slow_sums(predictions, gts, gt_idxs, fused=False)
    losses = auxiliary(priors, predictions, gts)
    assert {name: loss.item() for name, loss in losses.items()} == {
        "loss_cls_aux": pytest.approx(total / count, rel=1e-5)
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"normalizer": "images"},
            "normalizer 'images' is unknown; one of: foreground, gts, quality$",
        ),
        ({"soft_labels": "giou"}, "soft_labels 'giou' is unknown; one of: iou, none, quality"),
        ({"weights": "priors"}, r"weights 'priors' is .* \(did you mean 'prior'\?\)$"),
        ({"cls_weight": -1.0}, "cls_weight is -1.0, but must be at least 0"),
        ({"reg_weight": math.nan}, "reg_weight is nan, but must be finite"),
        ({"l1_weight": "2"}, "l1_weight is '2', but must be a number at least 0"),
    ],
)
def test_limits_of_the_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        dense(POTO(), **arguments)


def test_centerness_needs_a_matcher_that_gives_a_quality() -> None:
    with pytest.raises(ValueError, match="a matcher that gives a quality is needed, not POTO"):
        dense(POTO())(*batch((1,), "centerness"))
