"""DR loss: foreground above background by a margin, in expectation (arXiv 1907.10156)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...config.rules import check_argument, numbers
from ...structures import LossSum
from .class_losses import CLASS_LOSS_REGISTRY


@CLASS_LOSS_REGISTRY.register()
class DRLoss:
    """Distributional ranking: the background's expected probability below the foreground's.

    With N, the mean of the background's probabilities weighted by their softmax (its hardest
    count), and Q, that of the foreground's weighted by the softmax of minus them, the loss is
    tau / L log(1 + exp(L (N - Q + margin))). Both weights are learned through. Without background
    N is 0, without foreground Q is 1.

    As in the original release, all images of a worker are one distribution. With several workers,
    or micro batches, the loss is the mean of theirs: nothing else is joint, and numbers of
    locations divide nothing.

    Factors, of foreground entries or of locations, are those of the entry's weight in the softmax.
    """

    takes_targets = False

    def __init__(
        self,
        *,
        margin: float = 0.5,
        smoothness: float = 6.0,
        tau: float = 4.0,
        foreground_lambda: float = 1.0,
        background_lambda: float = 0.1 / math.log(3.5),
    ):
        """
        Args:
            margin: between the two expectations.
            smoothness: L, by which the loss is like a hinge.
            tau: factor of the loss.
            foreground_lambda, background_lambda: temperatures of the two softmaxes.
        """
        check_argument("margin", margin, numbers("[0, inf)"))
        check_argument("smoothness", smoothness, numbers("(0, inf)"))
        check_argument("tau", tau, numbers("(0, inf)"))
        check_argument("foreground_lambda", foreground_lambda, numbers("(0, inf)"))
        check_argument("background_lambda", background_lambda, numbers("(0, inf)"))
        self.margin = margin
        self.smoothness = smoothness
        self.tau = tau
        self.foreground_lambda = foreground_lambda
        self.background_lambda = background_lambda

    def __call__(
        self,
        logits: Tensor,
        foreground: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> LossSum:
        probability = logits.sigmoid()  # (N, R, K)
        own = probability[tuple(foreground)]  # (P,)
        hardness = probability / self.background_lambda
        own_hardness = -own / self.foreground_lambda
        if valid is not None:
            log_factors = valid.to(logits.dtype).log()  # (N, R)
            hardness = hardness + log_factors[..., None]
            own_hardness = own_hardness + log_factors[foreground[0], foreground[1]]
        if weights is not None:
            own_hardness = own_hardness + weights.to(logits.dtype).log()
        hardness = hardness.index_put(tuple(foreground), hardness.new_full((), -torch.inf))
        background = _expectation(probability.flatten(), hardness.flatten(), nothing=0.0)
        distance = background - _expectation(own, own_hardness, nothing=1.0) + self.margin
        loss = self.tau / self.smoothness * F.softplus(self.smoothness * distance)
        return LossSum(loss, torch.ones_like(loss.detach()))


def _expectation(values: Tensor, hardness: Tensor, nothing: float) -> Tensor:
    """Mean of ``values`` weighted by the softmax of ``hardness``; ``nothing`` where all are -inf.

    The last entry is of no weight beside any other.
    """
    weights = torch.cat([hardness, hardness.new_full((1,), -1e4)]).softmax(dim=0)
    return (weights * torch.cat([values, values.new_full((1,), nothing)])).sum()
