"""Divisors of losses: counts of the whole batch, over all workers, reduced once a step."""

from collections.abc import Callable, Iterable

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ...config.rules import ConfigError, unknown_name
from ...structures import LossSum, Predictions, Priors

#: From the counts of this worker, name of the loss to scalar, to what its losses are divided by.
Normalizer = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def mean_over_workers(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """All-reduced sums of the counts over the number of workers, at least 1 (method section 7).

    All counts go through one all-reduce, packed into a float64 tensor, so that a step waits for
    the other workers once however many losses it has. Every worker must have the same names.
    DistributedDataParallel averages gradients over workers, which makes up for the mean.

    Args:
        counts: name to scalar, of this worker.

    Returns:
        name to float64 scalar, the same on every worker.
    """
    if not counts:
        return {}
    packed = torch.stack([count.detach().double() for count in counts.values()])
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(packed)
    return dict(zip(counts, (packed / comm.get_world_size()).clamp(min=1).unbind()))


class SummedCriterion(nn.Module):
    """Base of criteria: their losses are sums over counts, which share one all-reduce a step.

    Subclasses implement ``loss_sums``; see ``CRITERION_REGISTRY`` for what else they may have.
    """

    #: Figures of the last call for the log: scalars on the device, read when the losses are.
    metrics: dict[str, Tensor]

    def __init__(self, *, predictions: str = "main"):
        """
        Args:
            predictions: name of the set of predictions that the losses are of.
        """
        super().__init__()
        self.predictions = predictions
        self.metrics = {}
        #: Share of the training done, in [0, 1]: set before each step, and no part of checkpoints.
        self.progress = 0.0

    def set_progress(self, progress: float) -> None:
        """Take the share of the training done, and pass it on to parts that depend on it."""
        self.progress = progress

    def loss_sums(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, LossSum]:
        """The losses of this worker's images before their division; communicates with nobody."""
        raise NotImplementedError

    def forward(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of ``loss_sums`` over ``mean_over_workers``, scalars in float32."""
        return normalize(self.loss_sums(priors, predictions, gt_instances))


def normalize(
    sums: dict[str, LossSum], normalizer: Normalizer = mean_over_workers
) -> dict[str, Tensor]:
    """Losses in float32: the totals over what ``normalizer`` makes of the counts."""
    divisors = normalizer({name: loss.count for name, loss in sums.items()})
    return {name: (loss.total / divisors[name]).float() for name, loss in sums.items()}


def evaluate_criteria(
    criteria: Iterable[nn.Module],
    priors: Priors,
    predictions: dict[str, Predictions],
    gt_instances: list[Instances],
    normalizer: Normalizer = mean_over_workers,
) -> dict[str, Tensor]:
    """The losses of all criteria.

    First every criterion matches and sums, then ``normalizer`` is called once for the counts of
    all their losses. To accumulate gradients over several batches as if they were one, give a
    normaliser that divides by the counts of them all: by ``mean_over_workers`` of the sums of the
    counts, which the function is given batch by batch (``DeFCN.normalizer`` is the place).

    Args:
        predictions: sets by name, of which each criterion takes its own.

    Returns:
        name to scalar.

    Raises:
        ConfigError: a criterion wants a set that is not there.
    """
    sums: dict[str, LossSum] = {}
    for criterion in criteria:
        assert isinstance(criterion, SummedCriterion)
        wanted = criterion.predictions
        if wanted not in predictions:
            key = f"CRITERION.{type(criterion).__name__}.PREDICTIONS"  # of the model or its AUX
            raise ConfigError(unknown_name(key, wanted, predictions))
        sums.update(criterion.loss_sums(priors, predictions[wanted], gt_instances))
    return normalize(sums, normalizer)
