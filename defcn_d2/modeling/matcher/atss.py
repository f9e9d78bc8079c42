"""The one-to-many assignment of ATSS (arXiv 1912.02424, section 3.2)."""

from detectron2.structures import Instances

from ...config.rules import check_argument, numbers, whole_numbers
from ...structures import Assignment, Predictions, Priors
from ..box_ops import pairwise_iou
from . import functional as F
from .costs import nearness
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class ATSS:
    """The locations near a box's centre whose anchor overlaps it more than most of them.

    Candidates are the k nearest locations of each level; foreground are those inside the box
    whose anchor has an IoU of at least the candidates' mean + standard deviation. A location that
    several want goes to the one of higher IoU. The quality is the centerness.
    """

    gives_quality = True

    def __init__(self, *, topk: int = 9, anchor_scale: float = 8.0, enlarge_tiny: bool = False):
        """
        Args:
            topk: candidates per level.
            anchor_scale: side of the square anchor at each location, in strides.
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("topk", topk, whole_numbers("[1, inf)"))
        check_argument("anchor_scale", anchor_scale, numbers("(0, inf)"))
        self.topk = topk
        self.anchor_scale = anchor_scale
        self.enlarge_tiny = enlarge_tiny

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        iou = pairwise_iou(gt_boxes, F.square_anchors(priors, self.anchor_scale))  # (M, R)
        candidates = F.topk_per_level(nearness(priors, gt_boxes), self.topk, priors.level_sizes)
        foreground = candidates & F.above_mean_std(iou, candidates)
        foreground &= F.inside_box(priors, gt_boxes, self.enlarge_tiny)
        gt_idxs = F.best_gt(iou, foreground)
        return Assignment(gt_idxs, quality=F.centerness(priors, gt_boxes, gt_idxs))
