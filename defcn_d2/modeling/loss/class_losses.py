"""Losses of class logits that a criterion takes by name."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ...config.components import ComponentRegistry, own_node
from ...config.rules import check_argument, numbers, value_of
from ...structures import LossSum
from .functional import focal_negative, focal_positive

CLASS_LOSS_REGISTRY = ComponentRegistry("CLASS_LOSS")
CLASS_LOSS_REGISTRY.__doc__ = """
Class losses: logits of all locations and the foreground among them to a sum.

A registered class is made from its keys, ``MODEL.DEFCN.LOSS.<Name>``, and is called as
``ClassLoss.__call__`` below. ``takes_targets``, a class attribute, says whether it can do with soft
labels (``SOFT_LABELS`` of the criterion). It may be an ``nn.Module``.

    >>> import torch
    >>> from defcn_d2.modeling.loss.class_losses import CLASS_LOSS_REGISTRY
    >>> from torch.nn import functional as F
    >>> @CLASS_LOSS_REGISTRY.register()
    ... class CrossEntropy:
    ...     def __init__(self, *, scale: float = 1.0):
    ...         self.scale = scale
    ...     def __call__(self, logits, foreground, targets=None, weights=None, valid=None):
    ...         labels = torch.zeros_like(logits)
    ...         labels[tuple(foreground)] = 1
    ...         loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    ...         return self.scale * loss
    >>> CLASS_LOSS_REGISTRY.keys_of("CrossEntropy")
    {'scale': 1.0}
"""


class ClassLoss(Protocol):
    """A class loss as criteria call it; see ``CLASS_LOSS_REGISTRY``."""

    def __call__(
        self,
        logits: Tensor,
        foreground: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor | LossSum:
        """
        Args:
            logits: (N, R, K) float32.
            foreground: (3, P) int64, image, location and class of each foreground entry.
            targets: (P,) float in [0, 1], soft labels of those entries; None: 1.
            weights: (P,) float, factors of those entries; None: 1.
            valid: (N, R), factors of whole locations: bool, False where one counts for nothing,
                or float; None: all count.

        Returns:
            the scalar sum, which the criterion divides by its own count; or a ``LossSum`` with
            the count of its own.
        """
        ...


def build_class_loss(node: CfgNode, key: str = "MODEL.DEFCN.LOSS", **given: Any) -> ClassLoss:
    """The class loss that ``node.NAME`` names; see ``ComponentRegistry.build``."""
    return CLASS_LOSS_REGISTRY.build(node, key, **given)


def soft_label_problems(cfg: CfgNode, key: str) -> Iterator[str]:
    """Sentences for a class loss that makes no sense without soft labels, at ``key``."""
    place = key.removesuffix(".LOSS")
    node = value_of(cfg, place)
    if own_node(node.CRITERION).get("SOFT_LABELS") == "none":
        yield (
            f"{key}.NAME {node.LOSS.NAME!r} is for soft labels; set "
            f"{place}.CRITERION.{node.CRITERION.NAME}.SOFT_LABELS to 'iou', or take another loss"
        )


class EntryLoss:
    """Base of class losses that are sums over (location, class) entries with soft labels.

    Subclasses implement ``positive`` and ``background``.
    """

    takes_targets = True

    def __call__(
        self,
        logits: Tensor,
        foreground: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        own = logits[tuple(foreground)]  # (P,)
        positive = self.positive(own, None if targets is None else targets.to(own.dtype))
        if weights is not None:
            positive = positive * weights
        background = self.background(logits)  # (N, R, K)
        correction = positive - self.background(own)  # (P,) what the sum of background lacks
        if valid is not None:
            background = background * valid[..., None]
            if valid.is_floating_point():  # foreground has no False
                correction = correction * valid[foreground[0], foreground[1]]
        return background.sum() + correction.sum()

    def positive(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        """(P,) losses of foreground entries; ``targets`` (P,) are their labels, None for 1."""
        raise NotImplementedError

    def background(self, logits: Tensor) -> Tensor:
        """Losses of entries of the label 0, of the shape of ``logits``."""
        raise NotImplementedError


@CLASS_LOSS_REGISTRY.register(default=["LOSS", "AUX.LOSS"])
class FocalLoss(EntryLoss):
    """The focal loss of every (location, class) entry (arXiv 1708.02002, eq. 5).

    The few foreground entries are indices instead of a one-hot target of the logits' size. Of a
    soft label y the loss is y times that of foreground and 1 - y times that of background (arXiv
    1912.05086, eq. 6).
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0):
        """
        Args:
            alpha: factor of foreground; that of background is 1 - alpha.
            gamma: exponent by which what is right already counts less.
        """
        check_argument("alpha", alpha, numbers("[0, 1]"))
        check_argument("gamma", gamma, numbers("[0, inf)"))
        self.alpha = alpha
        self.gamma = gamma

    def positive(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        hard = focal_positive(logits, self.alpha, self.gamma)
        return hard if targets is None else torch.lerp(self.background(logits), hard, targets)

    def background(self, logits: Tensor) -> Tensor:
        return focal_negative(logits, self.alpha, self.gamma)


@CLASS_LOSS_REGISTRY.register()
class QualityFocalLoss(EntryLoss):
    """The focal loss for soft labels, |y - p|^beta BCE(p, y) (arXiv 2006.04388, eq. 3)."""

    def __init__(self, *, beta: float = 2.0):
        """
        Args:
            beta: exponent by which what is right already counts less.
        """
        check_argument("beta", beta, numbers("[0, inf)"))
        self.beta = beta

    def positive(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        targets = torch.ones_like(logits) if targets is None else targets
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (targets - logits.sigmoid()).abs() ** self.beta * entropy

    def background(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() ** self.beta * F.softplus(logits)


@CLASS_LOSS_REGISTRY.register()
class SoftCrossEntropy(EntryLoss):
    """Binary cross-entropy with soft labels, and a focal factor for all other entries.

    Foreground entries: BCE(p, y). Others: w p^gamma (-log(1 - p)). With the defaults this is plain
    BCE, as task-aligned learning has it; one-to-few has the background of the focal loss.
    """

    def __init__(self, *, background_weight: float = 1.0, gamma: float = 0.0):
        """
        Args:
            background_weight: factor w of background.
            gamma: exponent by which background that is right already counts less.
        """
        check_argument("background_weight", background_weight, numbers("[0, inf)"))
        check_argument("gamma", gamma, numbers("[0, inf)"))
        self.background_weight = background_weight
        self.gamma = gamma

    def positive(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        targets = torch.ones_like(logits) if targets is None else targets
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    def background(self, logits: Tensor) -> Tensor:
        return self.background_weight * focal_negative(logits, 0.0, self.gamma)
