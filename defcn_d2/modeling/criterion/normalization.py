"""What losses are divided by: counts of the whole batch, over all workers, reduced once a step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ...structures import Predictions, Priors


@dataclass(frozen=True)
class LossSum:
    """A loss before its division.

    Attributes:
        total: scalar with a gradient, float32 or float64: weight times the sum over the images of
            this worker.
        count: scalar without a gradient: what this worker adds to the normaliser, such as its
            foreground locations.
    """

    total: Tensor
    count: Tensor


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
    """Base of criteria whose losses are sums over counts, which share one all-reduce a step.

    Subclasses implement ``loss_sums`` and leave ``forward`` as it is. A criterion that is no
    subclass works as well: it returns losses that are divided already, and reduces on its own.
    """

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
    predictions: Predictions,
    gt_instances: list[Instances],
    normalizer: Normalizer = mean_over_workers,
) -> dict[str, Tensor]:
    """The losses of all criteria.

    First every ``SummedCriterion`` matches and sums, then ``normalizer`` is called once for the
    counts of all their losses. To accumulate gradients over several batches as if they were one,
    give a normaliser that divides by the counts of them all: by ``mean_over_workers`` of the sums
    of the counts, which the function is given batch by batch (``DeFCN.normalizer`` is the place).

    Args:
        criteria: of any kind, see ``SummedCriterion``. One whose class has a ``forward`` of its
            own is called as any other module.

    Returns:
        name to scalar.
    """
    losses: dict[str, Tensor] = {}
    sums: dict[str, LossSum] = {}
    for criterion in criteria:
        arguments = (priors, predictions, gt_instances)
        if (
            isinstance(criterion, SummedCriterion)
            and type(criterion).forward is SummedCriterion.forward
        ):
            sums.update(criterion.loss_sums(*arguments))
        else:
            losses.update(criterion(*arguments))
    losses.update(normalize(sums, normalizer))
    return losses
