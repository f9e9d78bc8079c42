"""AP loss: classification as one ranking of all entries (arXiv 1904.06373)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ...config.rules import check_argument, numbers
from .class_losses import CLASS_LOSS_REGISTRY

# Background entries that are sorted at a time.
CHUNK = 2**20


@CLASS_LOSS_REGISTRY.register()
class APLoss:
    """1 - average precision of the ranking of all (location, class) entries of a batch.

    With the step H(x) = clamp(x / (2 d) + 1/2, 0, 1) of differences of logits, a foreground entry i
    has the rank a_i = 1 + sum of H(s_k - s_i) over the other foreground entries k, and background
    of b_i = sum of H(t_j - s_i) before it. Its error is b_i / (a_i + b_i), or that of a foreground
    entry below it, if smaller: the AP is interpolated. As the loss has no useful derivative, its
    gradient is the error itself: -1 times it for the entry, and for the background, its share
    H(t_j - s_i) / b_i.

    The sum of the errors is returned, which the criterion divides by the number of foreground
    locations of all workers. The entries of a worker are ranked among each other alone, as in the
    original release: with several workers, or micro batches, the loss is the mean error of all
    foreground entries, each in the ranking of its own part. Without foreground it is 0.

    Factors of foreground (weights, or those of its location) multiply its error. A location of
    factor 0 is left out of the ranking; other factors of background have no effect.
    """

    takes_targets = False

    def __init__(self, *, delta: float = 1.0):
        """
        Args:
            delta: half the width d of the step, in logits.
        """
        check_argument("delta", delta, numbers("(0, inf)"))
        self.delta = delta

    def __call__(
        self,
        logits: Tensor,
        foreground: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        factors = torch.ones_like(logits[tuple(foreground)]) if weights is None else weights  # (P,)
        background = torch.ones_like(logits, dtype=torch.bool)  # (N, R, K)
        if valid is not None:
            factors = factors * valid[foreground[0], foreground[1]]
            background &= (valid != 0)[..., None]
        background[tuple(foreground)] = False
        return _RankingErrors.apply(logits, foreground, factors.double(), background, self.delta)


class _RankingErrors(torch.autograd.Function):
    """Sum of the errors, float64; the gradient of ``APLoss``, computed with it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        foreground: Tensor,
        factors: Tensor,
        background: Tensor,
        delta: float,
    ) -> Tensor:
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)  # (N, R, K)
        total = factors.new_zeros(())
        if len(factors):
            own, order = logits[tuple(foreground)].double().sort()  # (P,)
            # Background too far below all of them is before none.
            rivals = (background & (logits > own[0] - delta)).flatten().nonzero().squeeze(1)  # (T,)
            parts = logits.flatten()[rivals].split(CHUNK)

            # Errors, interpolated from the lowest entry upwards.
            before = torch.zeros_like(own)  # b
            for part in parts:
                values = part.sort().values.double()
                before += len(part) - steps_over(own, values, torch.ones_like(values), delta)
            before.clamp_(min=0)  # of rounding
            rank = len(own) + 0.5 - steps_over(own, own, torch.ones_like(own), delta)  # H(0) = 1/2
            errors = (before / (rank + before)).cummin(dim=0).values
            shares = factors[order] * errors / before.where(before > 0, 1)
            errors = factors[order] * errors
            total = errors.sum()

            # The gradient: to each entry its error, and to the background before it.
            gradient[tuple(foreground[:, order])] = -errors.to(logits.dtype)
            pushes = [steps_over(part.double(), own, shares, delta) for part in parts]
            gradient.view(-1)[rivals] = torch.cat(pushes).to(logits.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None, None


def steps_over(x: Tensor, values: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Sum of ``weights`` times H(x - values), H(x) = clamp(x / (2 delta) + 1/2, 0, 1).

    By prefix sums: O((X + Y) log Y) instead of O(X Y). For the sum of H(values - x), subtract from
    that of the weights.

    Args:
        x: (X,) float64.
        values, weights: (Y,) float64; the values ascend.

    Returns:
        (X,) float64.
    """
    first, last = torch.searchsorted(values, x - delta), torch.searchsorted(values, x + delta)
    mass, moment = (pad(y.cumsum(dim=0), (1, 0)) for y in (weights, weights * values))  # (Y + 1,)
    near = mass[last] - mass[first]
    slope = x * near - (moment[last] - moment[first])
    return mass[first] + near / 2 + slope / (2 * delta)
