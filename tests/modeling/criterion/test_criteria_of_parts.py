"""Losses that see the images of a worker alone: what is joint of several workers.

The sum of the workers' totals over the sum of their counts, also where a count is a moving average;
each total is of its own images: the ranking of AP loss, the distributions of DR loss, the scale of
losses with weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from helpers import make_cfg
from process_groups import in_group
from test_criteria_normalization import NUM_CLASSES, batch

from defcn_d2.modeling.criterion import SummedCriterion, build_criteria

CONFIGS = ["POTO-AP-Loss", "POTO-DR-Loss", "NoisyAnchors-dense"]
PARTS = [[0, 2], [1]]  # images of each process; the first has no ground truth
STEPS = 2


def make_criterion(config: str) -> SummedCriterion:
    (criterion,) = build_criteria(
        make_cfg(f"{config}.yaml", "MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES)
    )
    return criterion


def own_losses() -> list[Any]:
    """By config and step: the losses of this process, and the gradients of their sum."""
    results = []
    for config in CONFIGS:
        criterion = make_criterion(config)
        for _ in range(STEPS):
            priors, predictions, gts = batch(PARTS[comm.get_rank()])
            losses = criterion(priors, predictions, gts)
            tensors = [predictions.cls_logits, predictions.boxes]
            gradients = torch.autograd.grad(sum(losses.values()), tensors)
            results.append(({name: x.item() for name, x in losses.items()}, gradients))
    return results


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    folder: Path = tmp_path_factory.mktemp("group")
    return in_group(2, own_losses, folder)


@pytest.mark.parametrize("config", CONFIGS)
def test_totals_of_the_parts_over_their_counts(members: list, config: str) -> None:
    criteria = [make_criterion(config) for _ in PARTS]
    for step in range(STEPS):
        found = [results[CONFIGS.index(config) * STEPS + step] for results in members]
        batches = [batch(images) for images in PARTS]
        sums = [criterion.loss_sums(*x) for criterion, x in zip(criteria, batches, strict=True)]
        expected = {
            name: sum(part[name].total for part in sums) / sum(part[name].count for part in sums)
            for name in sums[0]
        }
        # DistributedDataParallel takes the mean of losses and gradients.
        for name, loss in expected.items():
            mean = sum(losses[name] for losses, _ in found) / len(PARTS)
            assert mean == pytest.approx(loss.item(), rel=1e-5)
        tensors = [x for _, p, _ in batches for x in (p.cls_logits, p.boxes)]
        gradients = torch.autograd.grad(sum(expected.values()), tensors)
        for x, y in zip(gradients, [g for _, own in found for g in own], strict=True):
            torch.testing.assert_close(y / len(PARTS), x, rtol=1e-4, atol=1e-8)
