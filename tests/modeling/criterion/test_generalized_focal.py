"""Losses of Generalized Focal Loss, location by location; their weights, gradients and configs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from helpers import make_cfg, make_instances, make_priors, random_inputs, random_instances
from torch import Tensor

from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.criterion.generalized_focal import GFLCriterion
from defcn_d2.modeling.loss.class_losses import FocalLoss, QualityFocalLoss
from defcn_d2.modeling.matcher.atss import ATSS
from defcn_d2.modeling.matcher.fcos import FCOS
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import Assignment, Predictions, Priors

NUM_CLASSES = 3
REG_MAX = 6
HEIGHT, WIDTH = 40, 56
PRIORS = make_priors(HEIGHT, WIDTH)


class Weighted:
    """POTO's assignment with weights, as of a matcher that has such."""

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        found = POTO()(priors, predictions, gt)
        return replace(found, weights=0.5 + 0.01 * torch.arange(len(priors)))


MATCHERS = {"POTO": POTO(), "FCOS": FCOS(), "ATSS": ATSS(topk=3), "weighted": Weighted()}


class Case:
    """Leaves in float64, the predictions made of them, and the ground truth.

    The first object of each image has a twin, and one is larger than all distributions.
    """

    def __init__(self, counts: tuple[int, ...], seed: int, quality: bool):
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            values = 1.5 * torch.randn(len(counts), len(PRIORS), *shape, generator=generator)
            return values.double().requires_grad_()

        self.cls_logits, self.box_logits = leaf(NUM_CLASSES), leaf(4 * (REG_MAX + 1))
        self.quality_logits = leaf() if quality else None
        self.leaves = [x for x in vars(self).values() if x is not None]
        self.gts = []
        for i, count in enumerate(counts):
            gt = random_instances(HEIGHT, WIDTH, count, NUM_CLASSES, seed=seed + i, min_size=8)
            if count:
                twin = make_instances(HEIGHT, WIDTH, gt.gt_boxes.tensor[:1], gt.gt_classes[:1])
                large = make_instances(HEIGHT, WIDTH, [[0, 0, WIDTH, HEIGHT]], [0])
                gt = Instances.cat([gt, twin, large])
            self.gts.append(gt)

    def boxes(self) -> Tensor:
        bins = self.box_logits.unflatten(2, (4, -1)).softmax(-1)
        distances = (bins * torch.arange(REG_MAX + 1)).sum(-1) * PRIORS.strides[:, None]
        centers = PRIORS.centers
        return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)

    def predictions(self) -> Predictions:
        return Predictions(
            self.cls_logits,
            self.boxes(),
            self.quality_logits,
            extra={"box_logits": self.box_logits},
        )


def overlap(box: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of two boxes."""
    zero = torch.zeros((), dtype=torch.float64)
    width = torch.minimum(box[2], gt[2]) - torch.maximum(box[0], gt[0])
    height = torch.minimum(box[3], gt[3]) - torch.maximum(box[1], gt[1])
    inter = torch.maximum(width, zero) * torch.maximum(height, zero)
    union = (box[2] - box[0]) * (box[3] - box[1]) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - inter
    width = torch.maximum(box[2], gt[2]) - torch.minimum(box[0], gt[0])
    height = torch.maximum(box[3], gt[3]) - torch.minimum(box[1], gt[1])
    return inter / union, inter / union - (width * height - union) / (width * height)


def literal_losses(case: Case, assignments: list[Assignment]) -> dict[str, Tensor]:
    """``GFLCriterion`` with weights of whole priors, in float64."""
    boxes, scores = case.boxes(), case.cls_logits.sigmoid()
    if case.quality_logits is not None:
        scores = scores * case.quality_logits.sigmoid()[..., None]
    classes = giou = dfl = 0 * sum(leaf.sum() for leaf in case.leaves)
    weight_sum, count = 0.0, 0
    for i, (gts, assignment) in enumerate(zip(case.gts, assignments, strict=True)):
        for r, g in enumerate(assignment.gt_idxs.tolist()):
            whole = 1.0 if assignment.weights is None else assignment.weights[r].item()
            targets = torch.zeros(NUM_CLASSES, dtype=torch.float64)
            if g >= 0:
                gt = gts.gt_boxes.tensor[g].double()
                iou, generalised = overlap(boxes[i, r], gt)
                targets[gts.gt_classes[g]] = iou.detach()
                weight = scores[i, r].max().item()
                giou = giou + whole * weight * (1 - generalised)
                x, y = PRIORS.centers[r].tolist()
                sides = [x - gt[0], y - gt[1], gt[2] - x, gt[3] - y]
                for side, distance in enumerate(sides):
                    logits = case.box_logits[i, r].unflatten(0, (4, -1))[side]
                    target = (distance / PRIORS.strides[r]).clamp(0, REG_MAX - 0.1).item()
                    k = int(target)
                    log_s = torch.log(logits.exp() / logits.exp().sum())
                    loss = -((k + 1 - target) * log_s[k] + (target - k) * log_s[k + 1])
                    dfl = dfl + whole * weight * loss / 4
                weight_sum, count = weight_sum + weight, count + 1
            for p, target in zip(scores[i, r], targets, strict=True):
                entropy = -(target * p.log() + (1 - target) * (1 - p).log())
                classes = classes + whole * (target - p) ** 2 * entropy
    divisor = max(weight_sum, 1)
    return {
        "loss_cls": classes / max(count, 1),
        "loss_box_reg": 2 * giou / divisor,
        "loss_dfl": 0.25 * dfl / divisor,
    }


@pytest.mark.parametrize("quality", [False, True], ids=["plain", "filter"])
@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("counts", [(3, 0, 1), (0, 0), (1,)], ids=str)
def test_losses_and_gradients(counts: tuple[int, ...], matcher: str, quality: bool) -> None:
    for seed in range(3):
        case = Case(counts, 10 * seed, quality)
        criterion = GFLCriterion(
            matcher=MATCHERS[matcher], class_loss=QualityFocalLoss(), weights="prior"
        )
        predictions = case.predictions()
        assignments = criterion.match(PRIORS, predictions, case.gts)
        expected = literal_losses(case, assignments)
        found = criterion(PRIORS, predictions, case.gts)
        assert found.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(found[name].double(), loss, rtol=2e-6, atol=1e-7)
            gradients = torch.autograd.grad(
                found[name], case.leaves, retain_graph=True, materialize_grads=True
            )
            literal = torch.autograd.grad(
                loss, case.leaves, retain_graph=True, materialize_grads=True
            )
            for gradient, value in zip(gradients, literal, strict=True):
                torch.testing.assert_close(gradient, value, rtol=1e-5, atol=1e-7, msg=name)


def test_scores_are_weights_without_a_gradient() -> None:
    case = Case((3,), 0, quality=True)
    criterion = GFLCriterion(matcher=POTO(), class_loss=QualityFocalLoss())
    losses = criterion(PRIORS, case.predictions(), case.gts)
    loss = losses["loss_box_reg"] + losses["loss_dfl"]
    gradients = torch.autograd.grad(loss, case.leaves, allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True, False, True]


def test_both_losses_of_boxes_share_their_count() -> None:
    """One tensor, so that accumulated gradients of both are one."""
    case = Case((3, 2), 0, quality=False)
    criterion = GFLCriterion(matcher=FCOS(), class_loss=QualityFocalLoss(), suffix="_x")
    sums = criterion.loss_sums(PRIORS, case.predictions(), case.gts)
    assert list(sums) == ["loss_cls_x", "loss_box_reg_x", "loss_dfl_x"]
    assert sums["loss_box_reg_x"].count is sums["loss_dfl_x"].count
    assert sums["loss_cls_x"].count.item() > sums["loss_dfl_x"].count.item() > 1


def test_options() -> None:
    """Each part of the method alone, on another criterion or without it."""
    case = Case((3, 2), 0, quality=False)
    arguments = (PRIORS, case.predictions(), case.gts)
    whole = GFLCriterion(matcher=FCOS(), class_loss=QualityFocalLoss())(*arguments)
    dense = DenseCriterion(
        matcher=FCOS(), class_loss=QualityFocalLoss(), soft_labels="iou", box_weights="score"
    )(*arguments)
    assert dense == {name: loss for name, loss in whole.items() if name != "loss_dfl"}
    hard = GFLCriterion(
        matcher=FCOS(),
        class_loss=FocalLoss(),
        soft_labels="none",
        box_weights="none",
        reg_weight=0,
        dfl_weight=1,
    )
    sums = hard.loss_sums(*arguments)
    assert list(sums) == ["loss_cls", "loss_dfl"]
    assert sums["loss_cls"].count is sums["loss_dfl"].count
    without = GFLCriterion(matcher=FCOS(), class_loss=QualityFocalLoss(), dfl_weight=0)
    assert list(without(*arguments)) == ["loss_cls", "loss_box_reg"]


def test_distributions_learn_where_the_sides_are() -> None:
    """Between two bins, those two share the probability."""
    case = Case((1,), 0, quality=False)
    case.gts = [make_instances(HEIGHT, WIDTH, [[3, 5, 49, 27]], [1])]
    criterion = GFLCriterion(matcher=POTO(), class_loss=QualityFocalLoss(), dfl_weight=1)
    optimizer = torch.optim.Adam(case.leaves, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        sum(criterion(PRIORS, case.predictions(), case.gts).values()).backward()
        optimizer.step()
    predictions = case.predictions()
    (location,) = (criterion.match(PRIORS, predictions, case.gts)[0].gt_idxs >= 0).nonzero()[0]
    box = predictions.boxes[0, location].tolist()
    assert box == pytest.approx([3, 5, 49, 27], abs=0.5)
    shares = case.box_logits[0, location].unflatten(0, (4, -1)).softmax(-1).detach()
    assert (shares.topk(2).values.sum(dim=-1) > 0.95).all()
    assert predictions.scores()[0, location, 1] > 0.9


PUBLISHED = {
    "MATCHER.NAME": "ATSS",
    "MATCHER.ATSS.TOPK": 9,
    "MATCHER.ATSS.ANCHOR_SCALE": 8.0,
    "HEAD.NAME": "GFLHead",
    "HEAD.GFLHead.REG_MAX": 16,
    "CRITERION.NAME": "GFLCriterion",
    "CRITERION.GFLCriterion.REG_WEIGHT": 2.0,
    "CRITERION.GFLCriterion.DFL_WEIGHT": 0.25,
    "CRITERION.GFLCriterion.BOX_WEIGHTS": "score",
    "CRITERION.GFLCriterion.SOFT_LABELS": "iou",
    "LOSS.NAME": "QualityFocalLoss",
    "LOSS.QualityFocalLoss.BETA": 2.0,
    "QUALITY_BRANCH": "none",
    "NMS_TYPE": "class_wise",
    "NMS_THRESH_TEST": 0.6,
}
FCOS_KEYS = {"MATCHER.NAME": "FCOS"}
POTO_KEYS = {"MATCHER.NAME": "POTO", "NMS_TYPE": "none"}


@pytest.mark.parametrize("folder", ["", "shapes/", "shapes_crowd/"])
@pytest.mark.parametrize(
    "config, own", [("GFL", {}), ("FCOS-GFL", FCOS_KEYS), ("POTO-GFL", POTO_KEYS)]
)
def test_configs(config: str, own: dict, folder: str) -> None:
    cfg = make_cfg(f"{folder}{config}.yaml")
    flat = {}
    for key in PUBLISHED:
        node = cfg.MODEL.DEFCN
        for part in key.split("."):
            node = node[part]
        flat[key] = node
    assert flat == {**PUBLISHED, **own}
    if folder == "shapes_crowd/":
        assert cfg.MODEL.DEFCN.NUM_CLASSES == 1 and cfg.TEST.DETECTIONS_PER_IMAGE == 500
    elif config == "GFL" and not folder:
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90000, (60000, 80000))


def test_with_max_filtering_and_an_auxiliary_loss_in_mixed_precision() -> None:
    """The parts combine by config alone, and losses are finite in bfloat16."""
    node = "MODEL.DEFCN"
    cfg = make_cfg(
        "shapes/POTO-GFL.yaml",
        *(f"{node}.QUALITY_BRANCH", "filter", f"{node}.AUX.ENABLED", True),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, f"{node}.NUM_CONVS", 1),
    )
    model = build_model(cfg)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(random_inputs([(64, 64), (48, 64)], [3, 0], cfg.MODEL.DEFCN.NUM_CLASSES))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_dfl", "loss_cls_aux"}
    assert all(loss > 0 and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
