"""Losses of boxes whose sides are distributions (Generalized Focal Loss, arXiv 2006.04388)."""

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config.rules import check_argument, numbers
from ...structures import Foreground, LossSum, Predictions, Priors
from ..head import HEAD_REGISTRY
from ..loss.functional import distribution_focal_loss
from .build import CRITERION_REGISTRY
from .dense import DenseCriterion


@CRITERION_REGISTRY.register()
class GFLCriterion(DenseCriterion):
    """The dense losses, and the distribution focal loss of the sides of boxes.

    By default the losses of boxes are weighted by the location's score, and class labels are the
    IoUs of the predicted boxes, which the quality focal loss takes. The head gives the logits of
    distributions, (N, R, 4 * (n + 1)), as ``extra["box_logits"]``, which its class attribute
    ``gives_box_logits`` says.
    """

    def __init__(
        self,
        *,
        dfl_weight: float = 0.25,
        box_weights: str = "score",
        soft_labels: str = "iou",
        **arguments: Any,
    ):
        """
        Args:
            dfl_weight: factor of the distribution focal loss, the mean over the four sides, which
                has the factors ``box_weights``, too.
        """
        super().__init__(box_weights=box_weights, soft_labels=soft_labels, **arguments)
        check_argument("dfl_weight", dfl_weight, numbers("[0, inf)"))
        self.dfl_weight = dfl_weight

    def more_sums(
        self, priors: Priors, predictions: Predictions, foreground: Foreground
    ) -> dict[str, LossSum]:
        """``loss_dfl``, in float32 or float64."""
        if not self.dfl_weight:
            return {}
        logits = predictions.extra["box_logits"][foreground.images, foreground.locations]
        logits = logits.unflatten(1, (4, -1))  # (P, 4, reg_max + 1)
        loss = distribution_focal_loss(logits, side_distances(priors, foreground))  # (P, 4)
        return {"loss_dfl": self.weighted_box_sum(loss.mean(dim=1), self.dfl_weight, foreground)}

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        yield from super().problems(cfg, key)
        node = cfg.MODEL.DEFCN
        chosen = node if key == "MODEL.DEFCN.CRITERION" else node.AUX
        own = CRITERION_REGISTRY.values_of(chosen.CRITERION)
        of_aux = own["predictions"].partition("_")[0] == "aux" and node.AUX.HEAD.NAME
        place, head = ("AUX.HEAD", node.AUX.HEAD) if of_aux else ("HEAD", node.HEAD)
        if own["dfl_weight"] and not _gives_box_logits(head.NAME):
            givers = [name for name in HEAD_REGISTRY.names() if _gives_box_logits(name)]
            yield (
                f"{key}.NAME {chosen.CRITERION.NAME!r} learns distributions of the sides of boxes, "
                f"but {head.NAME} gives none; set MODEL.DEFCN.{place}.NAME to one of "
                f"{', '.join(givers)}, or DFL_WEIGHT to 0"
            )


def side_distances(priors: Priors, foreground: Foreground) -> Tensor:
    """(P, 4) from each location to left, top, right and bottom of its ground truth, in strides."""
    centers = priors.centers[foreground.locations]  # (P, 2)
    low, high = foreground.gt_boxes[:, :2], foreground.gt_boxes[:, 2:]
    distances = torch.cat([centers - low, high - centers], dim=1)
    return distances / priors.strides[foreground.locations, None]


def _gives_box_logits(name: str) -> bool:
    return getattr(HEAD_REGISTRY.get(name), "gives_box_logits", False)
