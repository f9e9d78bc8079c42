"""``NoisyAnchorsCriterion``: sums that weights leave as they are, over a moving average."""

from __future__ import annotations

import pytest
import torch
from helpers import make_cfg
from test_criterion_options import Fixed, batch, random_assignments
from test_criterion_variants import build

from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.criterion.noisy_anchors import NoisyAnchorsCriterion
from defcn_d2.modeling.loss.class_losses import FocalLoss

COUNTS = (3, 1, 4)
OPTIONS = {"class_loss": FocalLoss(alpha=0.5), "l1_weight": 1.0, "soft_labels": "quality"}


@pytest.fixture
def inputs() -> tuple:
    priors, predictions, gts = batch(COUNTS, "filter")
    predictions.cls_logits.requires_grad_()
    return priors, predictions, gts


def test_losses_have_their_sums_and_the_gradients_of_the_weighted_ones(inputs: tuple) -> None:
    assignments = random_assignments(COUNTS, weighted=True)
    sums = {}
    for name, kind, weights in (
        ("plain", DenseCriterion, "class"),
        ("weighted", DenseCriterion, "prior"),
        ("ours", NoisyAnchorsCriterion, "prior"),
    ):
        given = [
            type(a)(a.gt_idxs, a.quality, None if name == "plain" else a.weights)
            for a in assignments
        ]
        criterion = kind(matcher=Fixed(given), weights=weights, **OPTIONS)
        sums[name] = criterion.loss_sums(*inputs)
    assert set(sums["ours"]) == {"loss_cls", "loss_box_reg", "loss_box_l1"}
    tensors = {"loss_cls": inputs[1].cls_logits}
    for name, loss in sums["ours"].items():
        plain, weighted = (sums[kind][name].total for kind in ("plain", "weighted"))
        assert loss.total.item() == pytest.approx(plain.item(), rel=1e-5)
        x = tensors.get(name, inputs[1].boxes)
        found = torch.autograd.grad(loss.total, x, retain_graph=True)[0]
        expected = torch.autograd.grad(weighted, x, retain_graph=True)[0] * (plain / weighted)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)


def test_the_divisor_is_a_moving_average_of_this_step_and_those_before(inputs: tuple) -> None:
    given = [random_assignments(COUNTS, weighted=True) for _ in range(3)]
    criterion = NoisyAnchorsCriterion(matcher=Fixed(sum(given, [])), **OPTIONS)
    average = 100.0
    for assignments in given:
        average = 0.9 * average + 0.1 * sum((a.gt_idxs >= 0).sum().item() for a in assignments)
        sums = criterion.loss_sums(*inputs)
        assert [loss.count.item() for loss in sums.values()] == pytest.approx([average] * 3)
        assert criterion.state_dict()["moving_count"].item() == pytest.approx(average)


def test_evaluation_leaves_the_average_alone(inputs: tuple) -> None:
    criterion = NoisyAnchorsCriterion(
        matcher=Fixed(random_assignments(COUNTS, weighted=True)), initial_count=7, **OPTIONS
    ).eval()
    assert criterion.loss_sums(*inputs)["loss_cls"].count == 7
    assert criterion.moving_count == 7


def test_a_batch_without_ground_truth() -> None:
    criterion = NoisyAnchorsCriterion(matcher=Fixed([]), momentum=0.5, **OPTIONS)
    priors, predictions, gts = batch((0, 0), "none")
    losses = criterion(priors, predictions, gts)
    assert losses["loss_cls"] > 0 and losses["loss_box_reg"] == 0
    assert criterion.moving_count == 50
    losses["loss_box_reg"].backward()
    assert (predictions.boxes.grad == 0).all()


@pytest.mark.parametrize("config", ["NoisyAnchors.yaml", "NoisyAnchors-dense.yaml"])
def test_config(config: str) -> None:
    criterion = build(config)
    assert isinstance(criterion, NoisyAnchorsCriterion)
    assert (criterion.soft_labels, criterion.weights) == ("quality", "prior")
    assert criterion.class_loss.alpha == 0.5
    assert (criterion.matcher.topk, criterion.matcher.alpha) == (30, 0.75)
    assert criterion.moving_count == 100 and criterion.momentum == 0.9
    assert make_cfg(config).MODEL.DEFCN.NMS_TYPE == "class_wise"
