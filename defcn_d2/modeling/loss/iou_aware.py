"""The cross-entropy with a label between the predicted probability and the IoU."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ...config.rules import check_argument, numbers
from .class_losses import CLASS_LOSS_REGISTRY, EntryLoss, soft_label_problems
from .functional import focal_negative


@CLASS_LOSS_REGISTRY.register()
class IoUAwareLoss(EntryLoss):
    """BCE(p, t) of the foreground, t = p^alpha y^(1 - alpha) without gradient, y being the IoU;
    p^gamma BCE(p, 0) of the rest (IA-BCE of Align-DETR, arXiv 2304.07527, section 3.2).
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, least: float = 0.01):
        """
        Args:
            alpha: weight of the predicted probability in the label, in [0, 1].
            gamma: exponent by which background that is right already counts less.
            least: the label is at least this.
        """
        check_argument("alpha", alpha, numbers("[0, 1]"))
        check_argument("gamma", gamma, numbers("[0, inf)"))
        check_argument("least", least, numbers("[0, 1]"))
        self.alpha = alpha
        self.gamma = gamma
        self.least = least

    def positive(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        overlap = torch.ones_like(logits) if targets is None else targets
        mixed = logits.detach().sigmoid() ** self.alpha * overlap ** (1 - self.alpha)
        labels = mixed.clamp(min=self.least)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def background(self, logits: Tensor) -> Tensor:
        return focal_negative(logits, 0, self.gamma)

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        yield from soft_label_problems(cfg, key)
