"""The one-to-many assignment of FCOS (arXiv 1904.01355v5, section 3.2)."""

from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances

from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import smallness
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class FCOS:
    """Every location in the central region of a box, on the level for its size.

    A location that several want goes to the smallest of them. The quality is the centerness.
    """

    @configurable
    def __init__(self, *, size_ranges: list[tuple[float, float]], radius: float = 1.5):
        """
        Args:
            size_ranges: see ``functional.inside_size_range``.
            radius: half the side of the central region in strides; 0: the whole box.
        """
        if radius < 0:
            raise ValueError(f"MATCHER.RADIUS {radius} is negative; take 0 or more strides")
        self.size_ranges = size_ranges
        self.radius = radius

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"size_ranges": cfg.SIZE_RANGES, "radius": cfg.RADIUS}

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        allowed = F.inside_center(priors, gt_boxes, self.radius)
        allowed &= F.inside_size_range(priors, gt_boxes, self.size_ranges)
        gt_idxs = F.best_gt(smallness(priors, gt_boxes), allowed)
        return Assignment(gt_idxs, quality=F.centerness(priors, gt_boxes, gt_idxs))
