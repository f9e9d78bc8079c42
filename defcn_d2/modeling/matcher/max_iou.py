"""The one-to-many assignment of RetinaNet by overlap with anchors (arXiv 1708.02002, section 4)."""

import torch
from detectron2.structures import Instances

from ...config.rules import check_argument, numbers
from ...structures import BACKGROUND, IGNORE, Assignment, Predictions, Priors
from ..box_ops import pairwise_iou
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class MaxIoU:
    """Every anchor the ground truth that it overlaps most, if by enough.

    Below the threshold of foreground an anchor is foreground all the same where no other has a
    higher IoU with some ground truth (all of those that tie), and learns its own best one, also
    then. A ground truth without any overlap stays unmatched.
    """

    priors = "anchors"

    def __init__(self, *, foreground_iou: float = 0.5, background_iou: float = 0.4):
        """
        Args:
            foreground_iou: foreground has at least this IoU.
            background_iou: background has a lower one; those between the two are ignored.
        """
        check_argument("foreground_iou", foreground_iou, numbers("(0, 1]"))
        check_argument("background_iou", background_iou, numbers(f"(0, {foreground_iou}]"))
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        iou = pairwise_iou(gt.gt_boxes.tensor, priors.boxes)  # (M, R)
        own_iou, gt_idxs = iou.amax(dim=0), iou.argmax(dim=0)  # (R,)
        highest = iou.amax(dim=1, keepdim=True)  # (M, 1)
        foreground = ((iou == highest) & (iou > 0)).any(dim=0)
        foreground |= own_iou >= self.foreground_iou
        others = torch.where(own_iou < self.background_iou, BACKGROUND, IGNORE)
        return Assignment(torch.where(foreground, gt_idxs, others))
