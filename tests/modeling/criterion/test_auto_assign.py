"""``AutoAssign`` against loops over ground truths and locations, and its figures on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from helpers import (
    make_cfg,
    make_instances,
    make_priors,
    random_inputs,
    random_instances,
    random_predictions,
    tiny_cfg,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_matching import Box, Location, locations, strictly_inside
from torch import Tensor

from defcn_d2.config.model_rules import check_model_config
from defcn_d2.config.rules import ConfigError
from defcn_d2.modeling.criterion import build_criteria
from defcn_d2.modeling.criterion.auto_assign import (
    AutoAssign,
    background_shares,
    bag_confidences,
)
from defcn_d2.modeling.matcher import pairs as pairs_module
from defcn_d2.modeling.matcher.pairs import center_pairs
from defcn_d2.structures import Predictions, Priors

HEIGHT, WIDTH, NUM_CLASSES = 40, 56, 3
BEYOND = [-60.0, -60.0, -20.0, -20.0]
Batch = tuple[Priors, Predictions, list[Instances]]


def make_criterion(seed: int = 0, **arguments: Any) -> AutoAssign:
    """With centre priors that are not those of the start."""
    criterion = AutoAssign(num_classes=NUM_CLASSES, **arguments).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        criterion.center_mean.normal_(generator=generator)
        criterion.center_std.uniform_(0.7, 3, generator=generator)
    return criterion


def make_batch(counts: tuple[int, ...], seed: int, quality: bool = True) -> Batch:
    """Ground truths of all sizes, some twice, some beyond the image; some boxes are predicted."""
    priors = make_priors(HEIGHT, WIDTH)
    found = random_predictions(priors, NUM_CLASSES, len(counts), seed, quality)
    gts = []
    for i, count in enumerate(counts):
        gt = random_instances(HEIGHT, WIDTH, count, NUM_CLASSES, seed=seed + i)
        boxes, classes = gt.gt_boxes.tensor, gt.gt_classes
        if count > 1:
            boxes[1] = boxes[0]
            found.boxes[i, ::5] = boxes[0]
        if count > 2:
            boxes[2], classes[2] = boxes[0], classes[0]
        if count > 3:
            boxes[3] = torch.tensor(BEYOND)
        gts.append(gt)
    return priors, as_leaves(found), gts


def as_leaves(found: Predictions) -> Predictions:
    """In float64, taking a gradient; the values are those of float32."""
    quality = found.quality_logits
    return Predictions(
        found.cls_logits.double().requires_grad_(),
        found.boxes.double().requires_grad_(),
        None if quality is None else quality.double().requires_grad_(),
    )


def area(box: Tensor) -> Tensor:
    return (box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0)


def slow_iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    inter = area(torch.cat([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])]))
    union = area(a) + area(b) - inter
    hull = area(torch.cat([torch.minimum(a[:2], b[:2]), torch.maximum(a[2:], b[2:])]))
    return inter / union, inter / union - (hull - union) / hull


def slow_prior(criterion: AutoAssign, location: Location, box: Box, label: int) -> Tensor:
    mean, std = criterion.center_mean[label], criterion.center_std[label]
    dx = (location.x - (box[0] + box[2]) / 2) / location.stride - mean[0]
    dy = (location.y - (box[1] + box[3]) / 2) / location.stride - mean[1]
    return torch.exp(-(dx**2) / (2 * std[0] ** 2)) * torch.exp(-(dy**2) / (2 * std[1] ** 2))


def literal(criterion: AutoAssign, batch: Batch) -> dict[str, Tensor]:
    """The losses as they are written, one pair after the other."""
    priors, predictions, gt_instances = batch
    zero = torch.zeros((), dtype=torch.float64)
    positive, negative, norm, prior_sum, reached = zero, zero, zero, zero, 0
    for image, gt in enumerate(gt_instances):
        score = predictions.cls_logits[image].sigmoid()  # (R, K)
        if criterion.fused and predictions.quality_logits is not None:
            score = score * predictions.quality_logits[image].sigmoid()[:, None]
        gt_boxes = gt.gt_boxes.tensor.double()
        background = torch.ones(score.shape, dtype=torch.float64)
        of_image, own = zero, 0
        for box, label in zip(gt_boxes, gt.gt_classes.tolist(), strict=True):
            inside = [x for x in locations(priors) if strictly_inside(x, box.tolist())]
            if not inside:
                continue
            own += 1
            confidences, weights, values = [], [], []
            for location in inside:
                r = location.index
                _, giou = slow_iou_and_giou(predictions.boxes[image, r], box)
                confidences.append(score[r, label] * torch.exp(-5 * (1 - giou)))
                center_prior = slow_prior(criterion, location, box.tolist(), label)
                of_image = of_image + center_prior
                weights.append(torch.exp(3 * confidences[-1]) * center_prior)
                best = max(
                    slow_iou_and_giou(predictions.boxes[image, r], other)[0].item()
                    for other in gt_boxes
                )
                values.append(1 / max(1 - best, 1e-12))
            total = torch.stack(weights).sum().clamp(min=1e-12)
            bag = sum(w / total * p for w, p in zip(weights, confidences, strict=True))
            positive = positive - torch.log(bag)
            for location, f in zip(inside, values, strict=True):
                n = (f - min(values) + 1e-12) / (max(values) - min(values) + 1e-12)
                place = (location.index, label)
                background[place] = min(background[place].item(), 1 - n)
        q = score * background
        negative = negative + (-(q**2) * torch.log(1 - q)).sum()
        norm = norm + own / of_image.clamp(min=1e-12)
        prior_sum, reached = prior_sum + of_image.detach(), reached + own
    return {
        "loss_pos": 0.25 * positive / max(reached, 1),
        "loss_neg": 0.75 * negative / prior_sum.clamp(min=1),
        "loss_norm": 0.75 * norm / len(gt_instances),
    }


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.integers(0, 999),
    st.booleans(),
    st.booleans(),
)
def test_losses_and_gradients_are_the_literal_ones(
    counts: list[int], seed: int, quality: bool, fused: bool
) -> None:
    """Up to float32, in which the logits of all locations are fused and summed."""
    criterion = make_criterion(seed, fused=fused)
    batch = make_batch(tuple(counts), seed, quality)
    leaves = [batch[1].cls_logits, batch[1].boxes, *criterion.parameters()]
    if quality:
        leaves.append(batch[1].quality_logits)
    losses, expected = criterion(*batch), literal(criterion, batch)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.double(), expected[name], rtol=3e-6, atol=1e-6)
        found, wanted = (
            torch.autograd.grad(x, leaves, allow_unused=True, retain_graph=True)
            if x.requires_grad
            else [None] * len(leaves)
            for x in (loss, expected[name])
        )
        for a, b, leaf in zip(found, wanted, leaves, strict=True):
            a, b = (torch.zeros_like(leaf) if x is None else x for x in (a, b))
            atol = 3e-6 * b.abs().max().item() + 1e-9
            torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def test_a_bag_on_paper() -> None:
    confidence = torch.tensor([0.8, 0.2, 0.5], dtype=torch.float64)
    ones, gt_idxs = torch.ones(3, dtype=torch.float64), torch.tensor([0, 0, 2])
    bags = bag_confidences(confidence, ones, gt_idxs, 3)
    assert bags.tolist() == pytest.approx([0.714889, 0, 0.5], abs=1e-6)
    assert -math.log(bags[0]) == pytest.approx(0.335627, abs=1e-6)


@given(st.integers(0, 999))
def test_a_bag_lies_between_its_confidences_whatever_the_scale_of_its_prior(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence, prior = torch.rand(2, 12, generator=generator).double()
    gt_idxs = torch.arange(12) // 4
    bags = bag_confidences(confidence, prior, gt_idxs, 3)
    groups = confidence.view(3, 4)
    assert (groups.amin(1) <= bags + 1e-12).all() and (bags <= groups.amax(1) + 1e-12).all()
    scaled = torch.where(gt_idxs == 1, 0.01 * prior, prior)
    torch.testing.assert_close(bag_confidences(confidence, scaled, gt_idxs, 3), bags)
    equal = bag_confidences(torch.full_like(prior, 0.3), prior, gt_idxs, 3)
    torch.testing.assert_close(equal, torch.full_like(equal, 0.3))


def shares_of(boxes: list[Box], gt_boxes: list[Box], classes: list[int]) -> dict[tuple, float]:
    """(image, location, class) to its share, of the two locations (4, 4) and (12, 4)."""
    priors, gt = make_priors(8, 16, [8]), [make_instances(8, 16, gt_boxes, classes)]
    predicted = torch.tensor([boxes], dtype=torch.float64)
    entries, shares = background_shares(predicted, center_pairs(priors, gt, 0), gt, NUM_CLASSES)
    return dict(zip(zip(*(x.tolist() for x in entries), strict=True), shares.tolist(), strict=True))


def test_negative_weights_on_paper() -> None:
    """IoU 0.9 and 0.5: f is 10 and 2."""
    found = shares_of([[0, 0, 16, 7.2], [0, 0, 8, 8]], [[0, 0, 16, 8]], [1])
    assert found == {(0, 0, 1): pytest.approx(1), (0, 1, 1): pytest.approx(0, abs=1e-9)}


def test_equal_boxes_and_a_single_location_are_no_background() -> None:
    same = [[0, 0, 16, 4], [0, 4, 16, 8]]
    assert shares_of(same, [[0, 0, 16, 8]], [2]) == {(0, 0, 2): 1, (0, 1, 2): 1}
    assert shares_of(same, [[0, 0, 8, 8]], [2]) == {(0, 0, 2): 1}


def test_the_larger_share_is_taken_where_boxes_of_a_class_share_a_location() -> None:
    boxes, gts = [[0, 0, 16, 7.2], [8, 0, 16, 6]], [[0, 0, 16, 8], [8, 0, 16, 8]]
    apart = shares_of(boxes, gts, [0, 1])
    assert apart[0, 1, 0] == pytest.approx(0, abs=1e-9) and apart[0, 1, 1] == 1
    for order in ([0, 1], [1, 0]):
        assert shares_of(boxes, [gts[i] for i in order], [0, 0])[0, 1, 0] == 1


@pytest.mark.parametrize("logit", [-200.0, 0.0, 40.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(logit: float) -> None:
    priors, predictions, gts = make_batch((3, 0), seed=2)
    with torch.no_grad():
        predictions.cls_logits.fill_(logit)
        predictions.quality_logits.fill_(abs(logit))
    criterion = make_criterion()
    losses = criterion(priors, predictions, gts)
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    leaves = [predictions.cls_logits, predictions.boxes, *criterion.parameters()]
    assert all(x.isfinite().all() for x in torch.autograd.grad(sum(losses.values()), leaves))


def test_without_ground_truth_only_background_is_learned() -> None:
    priors, predictions, gts = make_batch((0, 0), seed=0)
    criterion = make_criterion()
    losses = criterion(priors, predictions, gts)
    assert losses["loss_pos"] == losses["loss_norm"] == 0
    score = predictions.cls_logits.sigmoid() * predictions.quality_logits.sigmoid()[..., None]
    expected = 0.75 * (-(score**2) * torch.log(1 - score)).sum()
    torch.testing.assert_close(losses["loss_neg"].double(), expected, rtol=1e-5, atol=0)
    sum(losses.values()).backward()
    for x in (predictions.boxes, *criterion.parameters()):
        assert (x.grad == 0).all()
    assert {k: v.item() for k, v in criterion.metrics.items()} == {
        "num_foreground": 0,
        "num_unmatched_gt": 0,
    }


def test_a_ground_truth_without_a_location_counts_nowhere() -> None:
    priors, predictions, _ = make_batch((1,), seed=3)
    box = [4.0, 3.0, 40.0, 35.0]
    alone = make_instances(HEIGHT, WIDTH, [box], [1])
    both = make_instances(HEIGHT, WIDTH, [BEYOND, box], [1, 1])
    criterion = make_criterion()
    expected = criterion(priors, predictions, [alone])
    losses = criterion(priors, predictions, [both])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    assert criterion.metrics["num_unmatched_gt"] == 1


def test_the_order_of_ground_truths_and_of_images_does_not_matter() -> None:
    priors, predictions, gts = make_batch((5, 2, 0), seed=4)
    criterion = make_criterion()
    expected = criterion(priors, predictions, gts)
    turned = [gt[torch.arange(len(gt)).flip(0)] for gt in gts][::-1]
    backwards = predictions[torch.tensor([2, 1, 0])]
    for name, loss in criterion(priors, backwards, turned).items():
        torch.testing.assert_close(loss, expected[name])


def test_the_sum_of_the_priors_alone_makes_them_wider() -> None:
    priors, predictions, gts = make_batch((3, 1), seed=5)
    criterion = AutoAssign(num_classes=NUM_CLASSES)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.05)
    seen = torch.cat([gt.gt_classes for gt in gts]).unique()
    before = criterion.center_std.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        criterion(priors, predictions, gts)["loss_norm"].backward()
        optimizer.step()
        after = criterion.center_std.detach().clone()
        assert (after[seen] > before[seen]).all()
        before = after
    criterion.zero_grad()
    criterion(priors, predictions, gts)["loss_pos"].backward()
    assert all(p.grad.any() for p in criterion.parameters())


def test_many_pairs_are_all_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    priors, predictions, gts = make_batch((4, 2), seed=6)
    expected = make_criterion()(priors, predictions, gts)
    monkeypatch.setattr(pairs_module, "MAX_PAIRS", 1)
    for name, loss in make_criterion()(priors, predictions, gts).items():
        assert torch.equal(loss, expected[name])


def test_parameters_are_those_of_the_model_and_beside_another_criterion() -> None:
    model = build_model(tiny_cfg("MODEL.DEFCN.AUX.CRITERION.NAME", "AutoAssign"))
    assert model.state_dict()["criteria.1.center_std"].shape == (7, 2)
    losses = model.train()(random_inputs([(64, 64)] * 2, [3, 0], 7))
    names = {"loss_cls", "loss_box_reg", "loss_pos_aux", "loss_neg_aux", "loss_norm_aux"}
    assert set(losses) == names
    assert {"num_foreground_aux", "num_unmatched_gt_aux"} <= set(model.figures)


def test_the_config_s_auxiliary_form_takes_plain_class_logits() -> None:
    criterion = build_criteria(make_cfg("POTO-AutoAssign.yaml"))[1]
    assert isinstance(criterion, AutoAssign) and not criterion.fused
    priors, predictions, gts = make_batch((2,), seed=7)
    losses = make_criterion(fused=False, norm_weight=0.0)(priors, predictions, gts)
    assert set(losses) == {"loss_pos", "loss_neg"}
    gradients = torch.autograd.grad(
        sum(losses.values()), predictions.quality_logits, allow_unused=True
    )
    assert gradients == (None,)


@pytest.mark.parametrize(
    ("branch", "fused", "refused"),
    [
        ("objectness", True, False),
        ("none", False, False),
        ("centerness", True, True),
        ("filter", False, True),
    ],
)
def test_a_branch_that_nothing_would_teach(branch: str, fused: bool, refused: bool) -> None:
    node = "MODEL.DEFCN."
    opts = [node + "QUALITY_BRANCH", branch, node + "CRITERION.AutoAssign.FUSED", fused]
    cfg = make_cfg("AutoAssign.yaml", *opts)
    if not refused:
        return check_model_config(cfg)
    message = f"QUALITY_BRANCH '{branch}' would not be learned by AutoAssign with FUSED {fused}"
    with pytest.raises(ConfigError, match=message):
        check_model_config(cfg)
