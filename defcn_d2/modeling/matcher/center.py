"""Hand-made one-to-one assignment by distance from the centre (arXiv 2012.03544, table 2)."""

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.structures import Instances

from ...config.rules import check_argument
from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import nearness, smallness
from .registry import MATCHER_REGISTRY
from .size_ranges import SIZE_RANGES, size_range_problems, size_ranges_rule


@MATCHER_REGISTRY.register()
class Center:
    """Every ground truth the location nearest to its centre, on the level for its size.

    A location that several want goes to the smallest of them; the others stay unmatched.
    """

    priors = "points"

    def __init__(self, *, size_ranges: Sequence[Sequence[float]] = SIZE_RANGES):
        """
        Args:
            size_ranges: smallest and largest distance in pixels to a side of the box that each
                level regresses, see ``functional.inside_size_range``.
        """
        check_argument("size_ranges", size_ranges, size_ranges_rule)
        self.size_ranges = size_ranges

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        return size_range_problems(cfg, key)

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        nearest = F.topk_per_level(nearness(priors, gt_boxes), 1, priors.level_sizes)  # (M, R)
        allowed = nearest & F.inside_size_range(priors, gt_boxes, self.size_ranges)
        return Assignment(F.best_gt(smallness(priors, gt_boxes), allowed))
