"""Hand-made one-to-one assignment by overlap with anchors (arXiv 2012.03544, table 2)."""

from detectron2.structures import Instances

from ...structures import Assignment, Predictions, Priors
from ..box_ops import pairwise_iou
from . import functional as F
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class Anchor:
    """Every ground truth its anchor of highest IoU.

    An anchor that several want goes to the one of higher IoU; the others stay unmatched.
    """

    priors = "anchors"

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        iou = pairwise_iou(gt.gt_boxes.tensor, priors.boxes)
        return Assignment(F.best_gt(iou, F.topk(iou, k=1)))
