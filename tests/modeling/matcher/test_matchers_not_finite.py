"""Predictions that are NaN or infinite: the assignment does without them, the step reports them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import make_priors, random_inputs, random_instances, random_predictions, tiny_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2.modeling.matcher import MATCHER_REGISTRY
from defcn_d2.modeling.matcher.foreground_loss import ForegroundLoss
from defcn_d2.modeling.matcher.one_to_few import OneToFew
from defcn_d2.modeling.matcher.onenet import OneNet
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.modeling.matcher.poto_aux import POTOAux
from defcn_d2.modeling.matcher.task_aligned import TaskAligned
from defcn_d2.structures import BACKGROUND, Predictions, Priors

VALUES = [math.nan, math.inf, -math.inf]
# Matchers that look at the predictions.
MATCHERS = {
    "POTO": POTO(),
    "POTO, argmax": POTO(solver="argmax"),
    "POTO, whole box": POTO(radius=0.0),
    "ForegroundLoss": ForegroundLoss(),
    "OneNet": OneNet(),
    "POTOAux": POTOAux(),
    "TaskAligned": TaskAligned(),
    "TaskAligned, one-to-one": TaskAligned(topk=7, keep=1),
    "OneToFew": OneToFew(),
}


def spoil(predictions: Predictions, bad: Tensor, field: str, value: float) -> Predictions:
    """Predictions of one image with ``value`` at the locations ``bad``."""
    x = getattr(predictions, field).clone()
    x[bad, ...] = torch.full_like(x[bad, ...], value)
    return replace(predictions, **{field: x})


def only(priors: Priors, keep: Tensor) -> Priors:
    """Those locations, which are no grid any more."""
    sizes = [int(level.sum()) for level in keep.split(priors.level_sizes)]
    return Priors(priors.boxes[keep], priors.strides[keep], sizes)


@pytest.mark.parametrize("name", MATCHERS)
@settings(max_examples=20)
@given(
    st.integers(0, 2**16),
    st.sampled_from(["cls_logits", "boxes", "quality_logits"]),
    st.sampled_from(VALUES),
    st.sampled_from([0.1, 0.6]),
)
def test_a_location_counts_for_nothing(
    name: str, seed: int, field: str, value: float, share: float
) -> None:
    priors = make_priors(64, 96, strides=(8, 16, 32))
    gt = random_instances(64, 96, 6, 3, seed=seed, min_size=8)
    good = random_predictions(priors, 3, None, seed=seed)
    bad = torch.rand(len(priors), generator=torch.Generator().manual_seed(seed)) < share
    bad[-1] = False  # a level keeps one
    predictions = spoil(good, bad, field, value)

    matcher = MATCHERS[name]
    gt_idxs = matcher(priors, predictions, gt).gt_idxs
    if name == "POTOAux" and field == "quality_logits":  # it does not look at them
        assert torch.equal(gt_idxs, matcher(priors, good, gt).gt_idxs)
        return
    assert (gt_idxs[bad] == BACKGROUND).all()
    without = matcher(only(priors, ~bad), predictions[~bad], gt)
    assert torch.equal(gt_idxs[~bad], without.gt_idxs)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in MATCHER_REGISTRY.names()]
    + [(name, {"keep_unreachable": True}) for name in ("POTO", "ForegroundLoss")],
)
def test_nothing_finite_at_all(name: str, options: dict, value: float) -> None:
    priors = make_priors(64, 96)
    gt = random_instances(64, 96, 6, 3, min_size=8)
    everywhere = torch.ones(len(priors), dtype=torch.bool)
    predictions = random_predictions(priors, 3, None)
    for field in ("cls_logits", "boxes", "quality_logits"):
        predictions = spoil(predictions, everywhere, field, value)
    gt_idxs = MATCHER_REGISTRY.get(name)(**options)(priors, predictions, gt).gt_idxs
    # These choose by the priors alone; NoisyAnchors has the predictions for labels and weights.
    if name in ("ATSS", "FCOS", "Center", "Anchor", "MaxIoU", "NoisyAnchors"):
        assert (gt_idxs >= 0).any()
    elif options:
        assert (gt_idxs >= 0).sum() == len(gt)
    else:
        assert (gt_idxs == BACKGROUND).all()


GTS = ["MODEL.DEFCN.CRITERION.DenseCriterion.NORMALIZER", "gts"]


@pytest.mark.parametrize(
    ("layer", "config", "value"),
    [
        ("cls_score", ["MODEL.DEFCN.MATCHER.NAME", "POTO"], math.nan),
        ("cls_score", ["MODEL.DEFCN.MATCHER.NAME", "POTO"], math.inf),
        ("cls_score", ["MODEL.DEFCN.MATCHER.NAME", "POTO"], -math.inf),
        ("bbox_pred", ["MODEL.DEFCN.MATCHER.NAME", "POTO"], math.nan),
        ("cls_score", ["MODEL.DEFCN.MATCHER.POTO.SOLVER", "argmax"], math.nan),
        ("cls_score", ["MODEL.DEFCN.MATCHER.NAME", "ForegroundLoss"], math.inf),
        ("bbox_pred", ["MODEL.DEFCN.MATCHER.NAME", "ForegroundLoss"], math.inf),
        ("cls_score", [*("MODEL.DEFCN.MATCHER.NAME", "OneNet"), *GTS], math.nan),
        ("cls_score", ["MODEL.DEFCN.MATCHER.POTO.KEEP_UNREACHABLE", True], math.nan),
    ],
)
def test_the_trainer_reports_the_loss(layer: str, config: list, value: float) -> None:
    """There is no error in the matchers before: of POTO and, in the same step, POTOAux."""
    model = build_model(tiny_cfg(*config))
    with torch.no_grad():
        getattr(model.head, layer).bias[0] = value
    inputs = random_inputs([(64, 64)], [2], num_classes=1)
    trainer = SimpleTrainer(model, [inputs], torch.optim.SGD(model.parameters(), lr=0.0))
    with EventStorage(), pytest.raises(FloatingPointError, match="infinite or NaN"):
        trainer.run_step()
