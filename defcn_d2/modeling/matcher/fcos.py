"""The one-to-many assignment of FCOS (arXiv 1904.01355v5, section 3.2)."""

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.structures import Instances

from ...config.rules import check_argument, numbers
from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import smallness
from .registry import MATCHER_REGISTRY
from .size_ranges import SIZE_RANGES, size_range_problems, size_ranges_rule


@MATCHER_REGISTRY.register()
class FCOS:
    """Every location in the central region of a box, on the level for its size.

    A location that several want goes to the smallest of them. The quality is the centerness.
    """

    priors = "points"
    gives_quality = True

    def __init__(
        self,
        *,
        size_ranges: Sequence[Sequence[float]] = SIZE_RANGES,
        radius: float = 1.5,
        enlarge_tiny: bool = False,
    ):
        """
        Args:
            size_ranges: smallest and largest distance in pixels to a side of the box that each
                level regresses, see ``functional.inside_size_range``.
            radius: half the side of the central region in strides; 0: the whole box.
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("size_ranges", size_ranges, size_ranges_rule)
        check_argument("radius", radius, numbers("[0, inf)"))
        self.size_ranges = size_ranges
        self.radius = radius
        self.enlarge_tiny = enlarge_tiny

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        return size_range_problems(cfg, key)

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        allowed = F.inside_center(priors, gt_boxes, self.radius, self.enlarge_tiny)  # (M, R)
        allowed &= F.inside_size_range(priors, gt_boxes, self.size_ranges)
        gt_idxs = F.best_gt(smallness(priors, gt_boxes), allowed)  # (R,)
        return Assignment(gt_idxs, quality=F.centerness(priors, gt_boxes, gt_idxs))
