"""Losses whose weights shift them between priors without changing their sums (arXiv 1912.05086)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config.rules import check_argument, numbers
from ...structures import Foreground, LossSum
from .build import CRITERION_REGISTRY
from .dense import DenseCriterion


@CRITERION_REGISTRY.register()
class NoisyAnchorsCriterion(DenseCriterion):
    """Losses times the weights of their priors, scaled to their sums without weights.

    The scale, without gradient, is that of all images of a worker. Instead of by a count of this
    step the losses are divided by its moving average, which this step is part of. Each worker keeps
    the average of its own counts: the divisor, the mean over the workers, is the average of theirs.
    Process 0's is what checkpoints hold. Each micro batch of a step counts as one update.
    """

    moving_count: Tensor

    def __init__(
        self,
        *,
        soft_labels: str = "quality",
        weights: str = "prior",
        initial_count: float = 100.0,
        momentum: float = 0.9,
        **arguments: Any,
    ):
        """
        Args:
            initial_count: the average before training, of a worker.
            momentum: share of the average that a step keeps.
        """
        super().__init__(soft_labels=soft_labels, weights=weights, **arguments)
        check_argument("initial_count", initial_count, numbers("[0, inf)"))
        check_argument("momentum", momentum, numbers("[0, 1]"))
        self.momentum = momentum
        self.register_buffer("moving_count", torch.tensor(float(initial_count)))

    def _foreground(self, *args: Any) -> Foreground:
        foreground = super()._foreground(*args)
        if self.training:
            self.moving_count.lerp_(foreground.count.to(self.moving_count), 1 - self.momentum)
        count = self.moving_count.clone()
        return replace(foreground, count=count, box_count=count)

    def _class_sum(
        self, predictions: Any, assignments: Any, gt_idxs: Any, foreground: Foreground
    ) -> LossSum:
        weighted = super()._class_sum(predictions, assignments, gt_idxs, foreground)
        with torch.no_grad():
            plain = replace(foreground, weights=None)
            target = super()._class_sum(predictions, assignments, gt_idxs, plain)
        return _scaled(weighted, target)

    def _box_sums(
        self, priors: Any, predictions: Any, foreground: Foreground, gt_instances: Any
    ) -> dict[str, LossSum]:
        weighted = super()._box_sums(priors, predictions, foreground, gt_instances)
        with torch.no_grad():
            plain = replace(foreground, weights=None)
            targets = super()._box_sums(priors, predictions, plain, gt_instances)
        return {name: _scaled(loss, targets[name]) for name, loss in weighted.items()}


def _scaled(loss: LossSum, target: LossSum) -> LossSum:
    """The loss scaled to the total of ``target``, by a factor without gradient; 0 stays 0."""
    total = loss.total.detach()
    return replace(loss, total=loss.total * (target.total / total.where(total != 0, 1)))
