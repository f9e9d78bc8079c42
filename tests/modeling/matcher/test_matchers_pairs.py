"""Pairs of a batch and their resolution, against the masks and matrices of single images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers import make_instances, make_priors, random_instances, random_predictions
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import Case, cases
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transfers import Transfers

from defcn_d2.modeling.matcher import costs
from defcn_d2.modeling.matcher import functional as F
from defcn_d2.modeling.matcher.foreground_loss import ForegroundLoss
from defcn_d2.modeling.matcher.one_to_few import OneToFew
from defcn_d2.modeling.matcher.pairs import (
    MAX_PAIRS,
    AllPairs,
    Pairs,
    _cells_in_regions,
    argmax_pairs,
    center_pairs,
    hungarian_pairs,
)
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.modeling.matcher.task_aligned import TaskAligned
from defcn_d2.structures import BACKGROUND, Predictions, Priors

RADII = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.25])


def listed(pairs: Pairs) -> list[tuple[int, int, int]]:
    columns = (pairs.images, pairs.gt_idxs, pairs.locations)
    return list(zip(*(column[pairs.allowed].tolist() for column in columns)))


def slow_list(priors: Priors, gt_instances: list[Instances], radius: float) -> list:
    """(image, ground truth of the batch, location), ascending."""
    pairs, first = [], 0
    for image, gt in enumerate(gt_instances):
        mask = F.inside_center(priors, gt.gt_boxes.tensor, radius)
        pairs += [(image, first + g, r) for g, r in mask.nonzero().tolist()]
        first += len(gt)
    return pairs


def padded(pairs: Pairs, priors: Priors, gt_instances: list[Instances], radius: float) -> Pairs:
    """As they are on a GPU."""
    gt_boxes = torch.cat([gt.gt_boxes.tensor for gt in gt_instances])
    assert priors.level_shapes is not None
    gt_idxs, locations, allowed = _cells_in_regions(
        priors, priors.level_shapes, gt_boxes, radius, MAX_PAIRS
    )
    images = torch.arange(len(gt_instances)).repeat_interleave(torch.tensor(pairs.num_gts))
    return replace(
        pairs,
        gt_idxs=gt_idxs,
        images=images[gt_idxs],
        locations=locations,
        allowed=allowed,
        gt_boxes=gt_boxes[gt_idxs],
        gt_classes=torch.cat([gt.gt_classes for gt in gt_instances])[gt_idxs],
    )


def without_grid(priors: Priors) -> Priors:
    return replace(priors, level_shapes=None)


@given(cases(), RADII)
def test_pairs_are_those_of_the_mask(case: Case, radius: float) -> None:
    nothing = make_instances(8, 8, [], [])
    batch = [case.gt[:1], nothing, case.gt, nothing]
    expected = slow_list(case.priors, batch, radius)
    pairs = center_pairs(case.priors, batch, radius)
    assert listed(pairs) == expected
    assert pairs.allowed.all()
    assert listed(center_pairs(without_grid(case.priors), batch, radius)) == expected
    assert listed(padded(pairs, case.priors, batch, radius)) == expected

    tiny = F.inside_center(case.priors, case.gt.gt_boxes.tensor, radius, enlarge_tiny=True)
    for priors in (case.priors, without_grid(case.priors)):
        enlarged = center_pairs(priors, [case.gt], radius, enlarge_tiny=True)
        index = (enlarged.gt_idxs, enlarged.locations)
        assert torch.stack(index).t().tolist() == tiny.nonzero().tolist()
        assert torch.equal(enlarged.gt_boxes, case.gt.gt_boxes.tensor[enlarged.gt_idxs])

    boxes = torch.cat([gt.gt_boxes.tensor for gt in batch])
    assert torch.equal(pairs.gt_boxes, boxes[pairs.gt_idxs])
    classes = torch.cat([gt.gt_classes for gt in batch])
    assert torch.equal(pairs.gt_classes, classes[pairs.gt_idxs])


@pytest.mark.parametrize("strides", [(8, 16, 32, 64, 128), (7, 13, 50), (3,)])
@pytest.mark.parametrize("radius", [0.0, 0.7, 1.5, 2.0, 3.1])
def test_boxes_of_any_coordinates(strides: tuple[int, ...], radius: float) -> None:
    priors = make_priors(200, 333, strides)
    random = random_instances(200, 333, 100, 1, seed=len(strides))
    boxes = torch.cat(
        [
            random.gt_boxes.tensor,
            # Sides through centres of cells, and in the middle between them.
            (random.gt_boxes.tensor / strides[0]).round() * strides[0],
            ((random.gt_boxes.tensor / strides[0]).round() + 0.5) * strides[0],
            torch.tensor([[-500.0, -400, -90, -1], [900, 900, 990, 990], [-1e9, -1e9, 1e9, 1e9]]),
        ]
    )
    batch = [make_instances(200, 333, boxes, [0] * len(boxes))]
    assert listed(center_pairs(priors, batch, radius)) == slow_list(priors, batch, radius)


def poto_quality(predictions: Predictions, gt: Instances) -> Tensor:
    return costs.prediction_quality(predictions, AllPairs.of(gt), 0.8)


def slow_match(
    priors: Priors, quality: Tensor, gt: Instances, radius: float, solver: str
) -> Tensor:
    """POTO over the whole matrix, of one image."""
    allowed = F.inside_center(priors, gt.gt_boxes.tensor, radius)
    if solver == "argmax":
        best = F.topk(quality.masked_fill(~allowed, -1), k=1)
        return F.best_gt(quality, allowed & best)
    return F.hungarian(quality, allowed)


def same_up_to_ties(actual: Tensor, expected: Tensor, score: Tensor) -> bool:
    """Whether the same locations are taken, at the same scores (M, R), each ground truth once.

    Scores that are equal on paper are rounded by their place in a tensor: which of two ground
    truths of the same score at a location takes it may depend on that.
    """
    taken = (expected >= 0).nonzero().squeeze(1)
    if not torch.equal(actual >= 0, expected >= 0) or len(actual[taken].unique()) != len(taken):
        return False
    return torch.allclose(score[actual[taken], taken], score[expected[taken], taken], rtol=1e-5)


@pytest.mark.parametrize("solver", ["hungarian", "argmax"])
@given(cases(), RADII, st.booleans())
def test_a_batch_is_matched_as_its_images_are(
    solver: str, case: Case, radius: float, branch: bool
) -> None:
    priors = case.priors
    batch = [case.gt, make_instances(8, 8, [], []), case.gt[:2]]
    predictions = random_predictions(priors, 3, num_images=3, quality=branch)
    predictions.boxes[2] = case.predictions.boxes  # some of them empty: qualities of 0
    matcher = POTO(radius=radius, solver=solver)
    results = matcher.match_batch(priors, predictions, batch)
    assert (results[1].gt_idxs == BACKGROUND).all()
    for i in (0, 2):
        quality = poto_quality(predictions[i], batch[i])
        expected = slow_match(priors, quality, batch[i], radius, solver)
        for actual in (results[i], matcher(priors, predictions[i], batch[i])):
            assert same_up_to_ties(actual.gt_idxs, expected, quality)
    elsewhere = matcher.match_batch(without_grid(priors), predictions, batch)
    assert [x.gt_idxs.tolist() for x in elsewhere] == [x.gt_idxs.tolist() for x in results]


@pytest.mark.parametrize("resolve", [hungarian_pairs, argmax_pairs])
@given(cases(), RADII)
def test_padding_changes_nothing(resolve, case: Case, radius: float) -> None:
    batch = [case.gt, case.gt[:1]]
    predictions = random_predictions(case.priors, 3, num_images=2)
    pairs = center_pairs(case.priors, batch, radius)
    filled = padded(pairs, case.priors, batch, radius)
    for score in (costs.prediction_quality, lambda *args: -costs.focal_cost(*args, 2.0)):
        scores = score(predictions, pairs, 0.25)
        dense = scores.new_zeros(sum(pairs.num_gts), len(case.priors))
        dense[pairs.gt_idxs, pairs.locations] = scores
        expected = resolve(pairs, scores)
        actual = resolve(filled, score(predictions, filled, 0.25))
        for one, other, own in zip(actual, expected, dense.split(pairs.num_gts)):
            assert same_up_to_ties(one.gt_idxs, other.gt_idxs, own)


@pytest.mark.parametrize("matcher", [POTO(), POTO(solver="argmax"), ForegroundLoss()])
@pytest.mark.parametrize("grid", [True, False])
def test_no_ground_truth_at_all(matcher, grid: bool) -> None:
    priors = make_priors(64, 64)
    priors = priors if grid else without_grid(priors)
    batch = [make_instances(64, 64, [], [])] * 2
    results = matcher.match_batch(priors, random_predictions(priors, 2, 2), batch)
    assert [x.gt_idxs.tolist() for x in results] == [[BACKGROUND] * len(priors)] * 2


@pytest.mark.parametrize(("num_gts", "radius"), [(500, 0.0), (500, 1.5), (40, 1.5)])
@pytest.mark.parametrize("branch", [True, False])
def test_cost_of_pairs_is_that_of_the_matrix(num_gts: int, radius: float, branch: bool) -> None:
    """With more pairs than locations, and with fewer."""
    priors = make_priors(256, 256)
    gt = random_instances(256, 256, num_gts, 3, min_size=8)
    predictions = random_predictions(priors, 3, quality=branch)
    pairs, every = center_pairs(priors, [gt], radius), AllPairs.of(gt)
    assert (len(pairs.locations) > len(priors)) == (num_gts == 500)
    index = (pairs.gt_idxs, pairs.locations)
    for score, arguments in (
        (costs.focal_cost, (0.25, 2.0)),
        (costs.prediction_quality, (0.8,)),
        (costs.prediction_quality, (0.8, False)),
        (costs.class_probability, (True,)),
    ):
        matrix = score(predictions[0], every, *arguments)
        assert matrix.shape == (num_gts, len(priors))
        torch.testing.assert_close(score(predictions, pairs, *arguments), matrix[index])


def fake_batch() -> tuple[Priors, Predictions, list[Instances]]:
    """Tensors on a GPU that has not to be there: shapes alone; to read a value is an error."""
    priors, device = make_priors(64, 64), "cuda"
    num_priors = len(priors)
    on_device = replace(
        priors,
        boxes=torch.empty(num_priors, 4, device=device),
        strides=torch.empty(num_priors, device=device),
    )
    predictions = Predictions(
        torch.empty(2, num_priors, 3, device=device),
        torch.empty(2, num_priors, 4, device=device, dtype=torch.float64),
        torch.empty(2, num_priors, device=device),
    )
    gt_instances = []
    for count in (5, 0):
        gt = Instances((64, 64))
        gt.gt_boxes = Boxes(torch.empty(count, 4, device=device))
        gt.gt_classes = torch.empty(count, device=device, dtype=torch.int64)
        gt_instances.append(gt)
    return on_device, predictions, gt_instances


@pytest.mark.parametrize("matcher", [POTO(), ForegroundLoss()])
def test_a_gpu_is_waited_for_once(matcher) -> None:
    with FakeTensorMode(), Transfers() as transfers:
        # What is not there cannot be solved: the end of the way is the host.
        with pytest.raises(RuntimeError, match="numpy"):
            matcher.match_batch(*fake_batch())
    assert transfers.count == 1


def test_a_gpu_is_never_waited_for_with_argmax() -> None:
    with FakeTensorMode(), Transfers() as transfers:
        results = POTO(solver="argmax").match_batch(*fake_batch())
    assert transfers.count == 0
    assert [x.gt_idxs.device.type for x in results] == ["cuda"] * 2


@pytest.mark.parametrize("matcher", [TaskAligned(topk=7, keep=1), OneToFew()])
def test_a_gpu_is_never_waited_for_by_a_matcher_with_soft_labels(matcher) -> None:
    with FakeTensorMode(), Transfers() as transfers:
        priors, predictions, (gt, _) = fake_batch()
        result = matcher(priors, predictions[0], gt)
    assert transfers.count == 0
    assert result.gt_idxs.device.type == result.quality.device.type == "cuda"
