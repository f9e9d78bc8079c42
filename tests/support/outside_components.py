"""Components as a user writes them outside of the package: one of each kind, each with a key.

The head is a plain ``nn.Module`` that shares no attribute with the one of the package, so that
whatever asks for more than its sets of predictions fails here.
"""

from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from defcn_d2.modeling.box_ops import iou, ltrb_to_boxes
from defcn_d2.modeling.criterion import CRITERION_REGISTRY
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.head import HEAD_REGISTRY
from defcn_d2.modeling.head.dense import flatten
from defcn_d2.modeling.loss import CLASS_LOSS_REGISTRY
from defcn_d2.modeling.matcher import MATCHER_REGISTRY
from defcn_d2.modeling.matcher import functional as M
from defcn_d2.modeling.matcher.costs import nearness
from defcn_d2.modeling.neck import NECK_REGISTRY
from defcn_d2.structures import Assignment, Foreground, LossSum, Predictions, Priors


@NECK_REGISTRY.register()
class OutsideNeck(nn.Module):
    """A 1x1 convolution to fewer channels."""

    def __init__(self, *, in_channels: int, out_channels: int = 48):
        super().__init__()
        self.out_channels = out_channels
        self.squeeze = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [self.squeeze(x) for x in features]


@HEAD_REGISTRY.register()
class OutsideHead(nn.Module):
    """One convolution for all that is predicted, the IoU of the box ("overlap") included."""

    def __init__(
        self, *, in_channels: int, strides: list[int], num_classes: int, longest: float = 4.0
    ):
        """
        Args:
            longest: distance from a location to a side of its box before training, in strides.
        """
        super().__init__()
        self.level_strides = strides
        self.split = [num_classes, 4, 1, 1]
        self.everything = nn.Conv2d(in_channels, sum(self.split), 3, padding=1)
        nn.init.normal_(self.everything.weight, std=0.01)
        nn.init.constant_(self.everything.bias, -2.0)
        self.longest = longest

    def forward(self, features: list[Tensor], priors: Priors) -> dict[str, Predictions]:
        flat = flatten([self.everything(x) for x in features])  # (N, R, K + 6)
        classes, sides, existence, overlap = flat.split(self.split, dim=-1)
        ltrb = F.softplus(sides + 2) * self.longest / 2 * priors.strides[:, None]
        boxes = ltrb_to_boxes(ltrb, priors.centers)
        extra = {"overlap": overlap.squeeze(-1)}
        return {"main": Predictions(classes, boxes, existence.squeeze(-1), extra=extra)}


@MATCHER_REGISTRY.register()
class OutsideMatcher:
    """The locations nearest to the centre of a box, with the IoU as quality.

    Their number falls to one with the progress of the training.
    """

    gives_quality = True

    def __init__(self, *, few: int = 3):
        self.few = few
        self.progress = 0.0

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        near = nearness(priors, gt_boxes)  # (M, R)
        count = max(1, round(self.few * (1 - self.progress)))
        gt_idxs = M.best_gt(near, M.topk(near, count))  # (R,)
        return Assignment(gt_idxs, quality=iou(gt_boxes[gt_idxs.clamp(min=0)], predictions.boxes))


@CLASS_LOSS_REGISTRY.register()
class OutsideClassLoss(nn.Module):
    """Cross-entropy plus epsilon (1 - p of the label), with a count of its own."""

    takes_targets = True

    def __init__(self, *, epsilon: float = 1.0):
        super().__init__()
        self.epsilon = epsilon

    def forward(
        self,
        logits: Tensor,
        foreground: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> LossSum:
        labels = torch.zeros_like(logits)
        labels[tuple(foreground)] = 1.0 if targets is None else targets.to(labels.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        loss = loss + self.epsilon * (labels - logits.sigmoid()).abs()
        return LossSum(loss.sum(), torch.full_like(loss[0, 0, 0], foreground.shape[1]))


@CRITERION_REGISTRY.register()
class OutsideCriterion(DenseCriterion):
    """The dense losses, and that of the overlap that the head predicts."""

    def __init__(self, *, overlap_weight: float = 1.0, **arguments: Any):
        super().__init__(**arguments)
        self.overlap_weight = overlap_weight

    def more_sums(
        self, priors: Priors, predictions: Predictions, foreground: Foreground
    ) -> dict[str, LossSum]:
        logits = predictions.extra["overlap"][foreground.images, foreground.locations]  # (P,)
        target = iou(foreground.boxes.detach(), foreground.gt_boxes).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return {"loss_overlap": LossSum(self.overlap_weight * loss, foreground.count)}
