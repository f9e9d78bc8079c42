"""Divisors of losses: one all-reduce a step, and the losses of the whole batch by it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from helpers import make_priors, random_inputs, random_instances, random_predictions, tiny_cfg
from process_groups import in_group
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from defcn_d2.config.rules import ConfigError
from defcn_d2.modeling.criterion import (
    LossSum,
    SummedCriterion,
    evaluate_criteria,
    mean_over_workers,
)
from defcn_d2.modeling.criterion.dense import AuxiliaryCriterion, DenseCriterion
from defcn_d2.modeling.loss.class_losses import FocalLoss, SoftCrossEntropy
from defcn_d2.modeling.matcher.fcos import FCOS
from defcn_d2.modeling.matcher.one_to_few import OneToFew
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.modeling.matcher.poto_aux import POTOAux
from defcn_d2.modeling.matcher.task_aligned import TaskAligned
from defcn_d2.structures import Predictions, Priors

NUM_CLASSES = 3
COUNTS = (0, 4, 3)  # ground truths of the images, of which the first is the first worker's


def make_criteria() -> list[SummedCriterion]:
    dense = partial(DenseCriterion, class_loss=FocalLoss())
    return [
        dense(matcher=POTO()),
        AuxiliaryCriterion(matcher=POTOAux(), class_loss=FocalLoss(), suffix="_aux"),
        dense(matcher=FCOS(), predictions="centerness", suffix="_fcos"),
        dense(matcher=POTO(), l1_weight=1, normalizer="gts", fused=False, suffix="_gts"),
        DenseCriterion(
            matcher=TaskAligned(),
            class_loss=SoftCrossEntropy(),
            soft_labels="quality",
            box_loss="ciou",
            box_weights="quality",
            normalizer="quality",
            suffix="_tal",
        ),
        dense(matcher=OneToFew(), box_weights="centerness", suffix="_few"),
    ]


def sets_of(predictions: Predictions) -> dict[str, Predictions]:
    """Sets of predictions for the criteria: "main" for all except one."""
    return {"main": predictions, "centerness": replace(predictions, centerness=True)}


def batch(images: list[int]) -> tuple[Priors, Predictions, list]:
    """These images of a batch of all, with predictions that take a gradient."""
    priors = make_priors(40, 56)
    predictions = random_predictions(priors, NUM_CLASSES, len(COUNTS))
    assert predictions.quality_logits is not None
    predictions = Predictions(
        predictions.cls_logits[images].requires_grad_(),
        predictions.boxes[images].requires_grad_(),
        predictions.quality_logits[images].requires_grad_(),
    )
    gts = [
        random_instances(40, 56, count, NUM_CLASSES, seed=i, min_size=8)
        for i, count in enumerate(COUNTS)
    ]
    return priors, predictions, [gts[i] for i in images]


def losses_and_gradients(
    images: list[int], criteria: list[SummedCriterion]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    priors, predictions, gts = batch(images)
    losses = evaluate_criteria(criteria, priors, sets_of(predictions), gts)
    tensors = [predictions.cls_logits, predictions.boxes, predictions.quality_logits]
    gradients = torch.autograd.grad(sum(losses.values()), tensors)
    return {name: loss.detach() for name, loss in losses.items()}, list(gradients)


def make_model() -> nn.Module:
    """A tiny POTO-3DMF-Aux whose images do not see each other."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES))
    for module in model.head.modules():  # outputs that are not all alike
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    model.train()
    model.backbone.eval()
    return model


def model_losses_and_gradients(
    images: list[int], model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs = random_inputs([(64, 64)] * len(COUNTS), COUNTS, NUM_CLASSES)
    losses = model([inputs[i] for i in images])
    sum(losses.values()).backward()
    gradients = {
        name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()
    }
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def results_of_a_member() -> dict:
    # The first of two workers has one image, the other has the rest.
    images = [0] if comm.get_rank() == 0 else list(range(1, len(COUNTS)))
    model = DistributedDataParallel(make_model())
    reduced = []
    all_reduce = torch.distributed.all_reduce

    def counting(tensor: Tensor, *args: object, **kwargs: object) -> object:
        reduced.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counting
    results = {}
    results["criteria"] = losses_and_gradients(images, make_criteria())
    results["reduced by criteria"], reduced = reduced, []
    results["model"] = model_losses_and_gradients(images, model)
    results["reduced by model"] = reduced
    return results


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Findings of each of two processes."""
    return in_group(2, results_of_a_member, tmp_path_factory.mktemp("workers"))


def test_two_workers_average_to_the_losses_of_the_whole_batch(workers: list[dict]) -> None:
    """Although one of them has no ground truth."""
    expected, _ = losses_and_gradients([0, 1, 2], make_criteria())
    found = [worker["criteria"][0] for worker in workers]
    assert found[0].keys() == found[1].keys() == expected.keys()
    for name, loss in expected.items():
        assert loss > 0
        torch.testing.assert_close((found[0][name] + found[1][name]) / 2, loss)


def test_gradients_of_two_workers_are_those_of_the_whole_batch(workers: list[dict]) -> None:
    _, expected = losses_and_gradients([0, 1, 2], make_criteria())
    for index, gradient in enumerate(expected):
        parts = [worker["criteria"][1][index] for worker in workers]
        torch.testing.assert_close(torch.cat(parts) / 2, gradient)  # as DDP averages them


def test_gradients_of_a_model_in_ddp_are_those_of_one_process(workers: list[dict]) -> None:
    losses, expected = model_losses_and_gradients([0, 1, 2], make_model())
    for name, loss in losses.items():
        found = sum(worker["model"][0][name] for worker in workers) / 2
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    for worker in workers:
        assert worker["model"][1].keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(
                worker["model"][1][name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=name
            )


def test_one_all_reduce_a_step(workers: list[dict]) -> None:
    for worker in workers:
        assert worker["reduced by criteria"] == [13]  # thirteen losses of six criteria
        assert worker["reduced by model"] == [3]


def test_alone_a_count_is_at_least_one_and_nothing_is_sent(monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("one process has nobody to reduce with")

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    counts = {"a": torch.tensor(0), "b": torch.tensor(0.25), "c": torch.tensor(7)}
    divisors = mean_over_workers(counts)
    assert {name: value.item() for name, value in divisors.items()} == {"a": 1, "b": 1, "c": 7}
    assert all(value.dtype == torch.float64 for value in divisors.values())
    assert mean_over_workers({}) == {}


def test_accumulated_batches_are_one_batch_with_the_normaliser_of_all() -> None:
    """As a trainer does it: counts first, then each batch over the counts of all."""
    counted: list[dict[str, Tensor]] = []

    def count(counts: dict[str, Tensor]) -> dict[str, Tensor]:
        counted.append(counts)
        return mean_over_workers(counts)

    def of_all(counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return mean_over_workers({name: sum(c[name] for c in counted) for name in counts})

    def losses_of(images: list[int], normalizer) -> dict[str, Tensor]:
        priors, predictions, gts = batch(images)
        return evaluate_criteria(make_criteria(), priors, sets_of(predictions), gts, normalizer)

    for images in ([0], [1, 2]):
        losses_of(images, count)
    parts = [losses_of(images, of_all) for images in ([0], [1, 2])]
    expected, _ = losses_and_gradients([0, 1, 2], make_criteria())
    for name, loss in expected.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss)


def test_normaliser_of_the_model_can_be_another() -> None:
    model = make_model()
    inputs = random_inputs([(64, 64)] * len(COUNTS), COUNTS, NUM_CLASSES)
    seen = []

    def halved(counts: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(counts.keys())
        return {name: 2 * value for name, value in mean_over_workers(counts).items()}

    losses = model(inputs)
    model.normalizer = halved
    for name, loss in model(inputs).items():
        torch.testing.assert_close(2 * loss, losses[name])
    assert seen == [losses.keys()]


def test_criterion_alone_gives_the_same_losses() -> None:
    priors, predictions, gts = batch([0, 1, 2])
    sets = sets_of(predictions)
    for criterion in make_criteria():
        expected = evaluate_criteria([criterion], priors, sets, gts)
        losses = criterion(priors, sets[criterion.predictions], gts)
        assert losses.keys() == expected.keys()
        assert all(torch.equal(loss, expected[name]) for name, loss in losses.items())


def test_a_set_that_no_head_gives_is_refused() -> None:
    priors, predictions, gts = batch([1])
    criterion = DenseCriterion(matcher=POTO(), class_loss=FocalLoss(), predictions="mian")
    with pytest.raises(
        ConfigError,
        match=r"DenseCriterion.PREDICTIONS 'mian' is unknown; one of: "
        r"centerness, main \(did you mean 'main'\?\)$",
    ):
        evaluate_criteria([criterion], priors, sets_of(predictions), gts)


def test_sums_in_float64_are_divided_before_they_are_rounded() -> None:
    class Large(SummedCriterion):
        def loss_sums(self, *args):
            return {"loss": LossSum(torch.tensor(3e38).double() * 4, torch.tensor(4))}

    loss = Large()(*batch([0]))["loss"]
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(3e38)
