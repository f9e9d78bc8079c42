"""``OneToFew`` against a loop over ground truths and locations, in float64; its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import make_instances, make_priors, random_instances, random_predictions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_matching import (
    Case,
    boxes_of_gt,
    cases,
    in_center_region,
    iou,
    locations,
    strictly_inside,
)
from test_matchers_pairs import same_up_to_ties
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.engine import run
from defcn_d2.modeling.matcher.costs import prediction_quality
from defcn_d2.modeling.matcher.one_to_few import OneToFew
from defcn_d2.modeling.matcher.pairs import AllPairs
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import BACKGROUND


def apart(values: list[float]) -> None:
    """Leave out cases that rounding may decide otherwise."""
    ordered = sorted(values, reverse=True)
    assume(all(a - b > 1e-5 for a, b in zip(ordered, ordered[1:], strict=False)))


def slow_one_to_few(
    case: Case, topk: int, radius: float, progress: float
) -> tuple[list[int], list[float], list[float]]:
    """Ground truth, label and weight of each location."""
    priors, predictions, gt = case
    p = predictions.cls_logits.double().sigmoid()
    if predictions.quality_logits is not None:
        p = p * predictions.quality_logits.double().sigmoid()[:, None]
    boxes, classes, predicted = boxes_of_gt(gt), gt.gt_classes.tolist(), predictions.boxes.tolist()
    qualities: list[dict[int, float]] = []
    candidates = []
    for box, c in zip(boxes, classes, strict=True):
        quality = {}
        for point in locations(priors):
            inside = in_center_region(point, box, radius) if radius else strictly_inside(point, box)
            overlap = iou(predicted[point.index], box)
            if inside and overlap > 0:
                quality[point.index] = p[point.index, c].item() ** 0.2 * overlap**0.8
        qualities.append(quality)
        apart(list(quality.values()))
        candidates.append(sorted(quality, key=lambda r: -quality[r])[:topk])

    gt_idxs, labels, weights = ([x] * len(priors) for x in (BACKGROUND, 0.0, 1.0))
    for r in range(len(priors)):
        wanting = [g for g, own in enumerate(candidates) if r in own]
        apart([qualities[g][r] for g in wanting])
        if wanting:
            gt_idxs[r] = max(wanting, key=lambda g: qualities[g][r])
    for g, quality in enumerate(qualities):
        own = sorted((r for r, x in enumerate(gt_idxs) if x == g), key=lambda r: -quality[r])
        for rank, r in enumerate(own):
            if rank == 0:
                labels[r] = 1.0
            else:
                highest = max(p[other, classes[g]].item() for other in own[1:])
                labels[r] = (0.6 - 0.4 * progress) * p[r, classes[g]].item() / highest
                weights[r] = 0.4
    return gt_idxs, labels, weights


@settings(max_examples=80)
@given(
    cases(),
    st.integers(0, 99),
    st.sampled_from([1, 4, 7]),
    st.sampled_from([1.5, 0.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_against_a_loop(case: Case, seed: int, topk: int, radius: float, progress: float) -> None:
    predictions = random_predictions(case.priors, 3, None, seed=seed, quality=bool(seed % 2))
    predictions.boxes[::2] = case.predictions.boxes[::2]  # some of them empty
    case = Case(case.priors, predictions, case.gt)
    expected, labels, weights = slow_one_to_few(case, topk, radius, progress)
    matcher = OneToFew(topk=topk, radius=radius)
    matcher.progress = progress
    actual = matcher(*case)
    assert actual.gt_idxs.tolist() == expected
    assert actual.quality.tolist() == pytest.approx(labels, rel=1e-5)
    assert actual.weights.tolist() == pytest.approx(weights)


@pytest.mark.parametrize("seed", range(4))
def test_one_is_certain_and_the_others_have_labels_of_at_most_t(seed: int) -> None:
    priors = make_priors(136, 200)
    gt = random_instances(136, 200, 12, 3, seed=seed, min_size=10)
    matcher = OneToFew()
    matcher.progress = 0.5
    found = matcher(priors, random_predictions(priors, 3, None, seed=seed), gt)
    assert set(found.weights.unique().tolist()) == {torch.tensor(0.4).item(), 1.0}
    for g in found.gt_idxs[found.gt_idxs >= 0].unique():
        labels, weights = found.quality[found.gt_idxs == g], found.weights[found.gt_idxs == g]
        assert (weights == 1).sum() == 1 and labels[weights == 1] == 1
        if len(labels) > 1:
            assert labels[weights < 1].max().item() == pytest.approx(0.4)


@given(cases(), st.integers(0, 99), st.sampled_from([1.5, 0.0]))
def test_one_location_is_poto_by_argmax(case: Case, seed: int, radius: float) -> None:
    predictions = random_predictions(case.priors, 3, None, seed=seed)
    alone = OneToFew(topk=1, radius=radius)(case.priors, predictions, case.gt)
    poto = POTO(solver="argmax", radius=radius)(case.priors, predictions, case.gt)
    quality = prediction_quality(predictions, AllPairs.of(case.gt), 0.8)
    assert same_up_to_ties(alone.gt_idxs, poto.gt_idxs, quality)
    assert (alone.quality[alone.gt_idxs >= 0] == 1).all() and (alone.weights == 1).all()


def test_labels_fade() -> None:
    matcher = OneToFew()
    labels = []
    for epoch in (0, 5, 11):
        matcher.progress = epoch / 11
        labels.append(matcher.largest_label)
    assert labels == pytest.approx([0.6, 0.4182, 0.2], abs=1e-4)


def test_probabilities_that_vanish_give_labels_of_0() -> None:
    priors = make_priors(64, 64)
    gt = make_instances(64, 64, [[4, 5, 50, 53]], [0])
    predictions = random_predictions(priors, 1, None, quality=False)
    predictions.cls_logits.fill_(-104.0)  # the sigmoid is 0, or the smallest number there is
    found = OneToFew(alpha=1.0)(priors, predictions, gt)
    assert found.quality.isfinite().all() and (found.quality <= 1).all()


def test_a_resumed_training_has_the_labels_of_one_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_sets()
    seen: list[float] = []
    call = OneToFew.__call__

    def recorded(matcher: OneToFew, *args: object) -> object:
        seen.append(matcher.largest_label)
        return call(matcher, *args)

    monkeypatch.setattr(OneToFew, "__call__", recorded)
    command = ["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, "OUTPUT_DIR", str(tmp_path)]
    command += ["MODEL.DEFCN.MATCHER.NAME", "OneToFew", "DATALOADER.NUM_WORKERS", "0"]
    command += ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    command += ["SOLVER.IMS_PER_BATCH", "1"]
    assert run(command) == 0
    whole, seen[:] = list(seen), []
    assert whole == pytest.approx([0.6, 0.5, 0.4, 0.3])
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert run(["--resume", *command]) == 0
    assert seen == whole[2:]
