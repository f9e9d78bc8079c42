"""``DenseCriterion`` as FCOS, ATSS and OneNet configure it, against the formulas written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import make_cfg, make_instances, make_priors, random_instances, random_predictions
from slow_matching import centerness, giou, locations
from torch import Tensor

from defcn_d2.config.rules import ConfigError
from defcn_d2.modeling.criterion import build_criteria
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.structures import Predictions, Priors

HEIGHT, WIDTH, NUM_CLASSES = 64, 96, 4
COUNTS = (3, 0, 5)


def build(config: str, *opts: object) -> DenseCriterion:
    criteria = build_criteria(make_cfg(config, "MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES, *opts))
    assert len(criteria) == 1 and isinstance(criteria[0], DenseCriterion)
    return criteria[0]


def batch(centerness: bool) -> tuple[Priors, Predictions, list]:
    priors = make_priors(HEIGHT, WIDTH)
    predictions = random_predictions(priors, NUM_CLASSES, len(COUNTS), seed=1, quality=centerness)
    predictions = replace(predictions, centerness=centerness)
    gts = [
        random_instances(HEIGHT, WIDTH, count, NUM_CLASSES, seed=i, min_size=12)
        for i, count in enumerate(COUNTS)
    ]
    return priors, predictions, gts


def focal(logits: Tensor, targets: Tensor) -> float:
    """Sum over locations and classes; targets are one-hot."""
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total += -0.25 * (1 - p) ** 2 * math.log(p) if target else -0.75 * p**2 * math.log(1 - p)
    return total


def foreground(criterion: DenseCriterion, priors: Priors, predictions: Predictions, gts: list):
    """(image, location, gt) of every foreground location."""
    for i, assignment in enumerate(criterion.match(priors, predictions, gts)):
        for location in locations(priors):
            g = int(assignment.gt_idxs[location.index])
            if g >= 0:
                yield i, location, g


def classification(pairs: list, predictions: Predictions, gts: list) -> float:
    targets = torch.zeros_like(predictions.cls_logits)
    for i, location, g in pairs:
        targets[i, location.index, gts[i].gt_classes[g]] = 1
    return focal(predictions.cls_logits, targets)


@pytest.mark.parametrize(
    ("config", "weight"), [("FCOS.yaml", 1), ("crowdhuman/ATSS.yaml", 2)], ids=["FCOS", "ATSS"]
)
def test_centerness_weights_the_boxes_and_is_learnt(config: str, weight: float) -> None:
    criterion = build(config)
    priors, predictions, gts = batch(centerness=True)
    pairs = list(foreground(criterion, priors, predictions, gts))
    assert len(pairs) > 1
    assert predictions.quality_logits is not None
    boxes = cross_entropy = total = 0.0
    for i, location, g in pairs:
        gt_box = gts[i].gt_boxes.tensor[g].tolist()
        target = centerness(location, gt_box)
        total += target
        boxes += target * (1 - giou(predictions.boxes[i, location.index].tolist(), gt_box))
        p = 1 / (1 + math.exp(-predictions.quality_logits[i, location.index]))
        cross_entropy -= target * math.log(p) + (1 - target) * math.log(1 - p)
    losses = {k: v.item() for k, v in criterion(priors, predictions, gts).items()}
    assert losses == pytest.approx(
        {
            "loss_cls": classification(pairs, predictions, gts) / len(pairs),
            "loss_box_reg": weight * boxes / max(total, 1),
            "loss_centerness": cross_entropy / len(pairs),
        },
        rel=1e-5,
    )


def test_without_centerness_boxes_count_equally() -> None:
    criterion = build("FCOS-wo-centerness.yaml")
    priors, predictions, gts = batch(centerness=False)
    pairs = list(foreground(criterion, priors, predictions, gts))
    boxes = sum(
        1 - giou(predictions.boxes[i, location.index].tolist(), gts[i].gt_boxes.tensor[g].tolist())
        for i, location, g in pairs
    )
    losses = {k: v.item() for k, v in criterion(priors, predictions, gts).items()}
    assert losses == pytest.approx(
        {
            "loss_cls": classification(pairs, predictions, gts) / len(pairs),
            "loss_box_reg": boxes / len(pairs),
        },
        rel=1e-5,
    )


def test_onenet_divides_by_the_number_of_gts_and_adds_l1() -> None:
    criterion = build("OneNet.yaml")
    priors, predictions, gts = batch(centerness=False)
    # Twins compete for one location, so that foreground and ground truths differ in number.
    gts[1] = make_instances(HEIGHT, WIDTH, [[8, 8, 40, 40]] * 2, [1, 1])
    num_gts = sum(map(len, gts))
    pairs = list(foreground(criterion, priors, predictions, gts))
    assert len(pairs) < num_gts
    overlap = l1 = 0.0
    for i, location, g in pairs:
        gt_box = gts[i].gt_boxes.tensor[g].tolist()
        box = predictions.boxes[i, location.index].tolist()
        overlap += 1 - giou(box, gt_box)
        sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
        l1 += sum(abs(a - b) / side for a, b, side in zip(box, gt_box, sides, strict=True))
    losses = {k: v.item() for k, v in criterion(priors, predictions, gts).items()}
    assert losses == pytest.approx(
        {
            "loss_cls": 2 * classification(pairs, predictions, gts) / num_gts,
            "loss_box_l1": 5 * l1 / num_gts,
            "loss_box_reg": 2 * overlap / num_gts,
        },
        rel=1e-5,
    )


def test_unknown_normalizer_is_refused_by_its_key() -> None:
    key = "MODEL.DEFCN.CRITERION.DenseCriterion.NORMALIZER"
    with pytest.raises(ConfigError, match=f"^{key} 'boxes' is unknown; one of: foreground, gts"):
        build("POTO.yaml", key, "boxes")


def test_key_of_the_auxiliary_criterion() -> None:
    key = "MODEL.DEFCN.AUX.CRITERION.AuxiliaryCriterion.CLS_WEIGHT"
    with pytest.raises(ConfigError, match=f"^{key} is -1.0, but must be at least 0"):
        build_criteria(make_cfg("POTO-3DMF-Aux.yaml", key, -1.0))


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (
            ["LOSS.NAME", "Focal"],
            r"LOSS.NAME 'Focal' is unknown; .*\(did you mean 'FocalLoss'\?\)",
        ),
        (["CRITERION.NAME", "Dense"], r"CRITERION.NAME 'Dense' is unknown; one of: AutoAssign"),
        (["AUX.LOSS.NAME", "zzz"], "AUX.LOSS.NAME 'zzz' is unknown; one of: APLoss, "),
        (["AUX.MATCHER.NAME", ""], "AUX.MATCHER.NAME '' is unknown; one of: ATSS, "),
        (["AUX.CRITERION.NAME", "x"], "AUX.CRITERION.NAME 'x' is unknown; one of: "),
    ],
)
def test_unknown_names_of_parts(opts: list, sentence: str) -> None:
    cfg = make_cfg("POTO-3DMF-Aux.yaml", f"MODEL.DEFCN.{opts[0]}", opts[1])
    with pytest.raises(ConfigError, match=rf"^MODEL\.DEFCN\.{sentence}"):
        build_criteria(cfg)
