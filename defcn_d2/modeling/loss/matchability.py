"""The cross-entropy with the IoU as label, also where a match is poor."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ...config.rules import check_argument, numbers
from .class_losses import CLASS_LOSS_REGISTRY, EntryLoss, soft_label_problems


@CLASS_LOSS_REGISTRY.register()
class MatchabilityAwareLoss(EntryLoss):
    """BCE(p, y^gamma) of the foreground, p^background_gamma BCE(p, 0) of the rest, that factor
    without gradient (MAL of DEIM, arXiv 2412.04234, eq. 3).

    Foreground weighs 1 whatever its label y, the IoU: a match with a poor box counts, too.
    """

    def __init__(self, *, gamma: float = 1.5, background_gamma: float = 2.0):
        """
        Args:
            gamma: exponent of the label.
            background_gamma: exponent by which background that is right already counts less. DEIM
                has gamma in its place, for 300 queries: over the million entries of a dense head
                that starts with the probability 0.01, the loss is ten times as large as with 2.
        """
        check_argument("gamma", gamma, numbers("(0, inf)"))
        check_argument("background_gamma", background_gamma, numbers("[0, inf)"))
        self.gamma = gamma
        self.background_gamma = background_gamma

    def positive(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        targets = torch.ones_like(logits) if targets is None else targets**self.gamma
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    def background(self, logits: Tensor) -> Tensor:
        return logits.detach().sigmoid() ** self.background_gamma * F.softplus(logits)

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        yield from soft_label_problems(cfg, key)
