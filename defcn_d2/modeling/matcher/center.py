"""Hand-made one-to-one assignment by distance from the centre (arXiv 2012.03544, table 2)."""

from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances

from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import nearness, smallness
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class Center:
    """Every ground truth the location nearest to its centre, on the level for its size.

    A location that several want goes to the smallest of them; the others stay unmatched.
    """

    @configurable
    def __init__(self, *, size_ranges: list[tuple[float, float]]):
        """
        Args:
            size_ranges: see ``functional.inside_size_range``.
        """
        self.size_ranges = size_ranges

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"size_ranges": cfg.SIZE_RANGES}

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        nearest = F.topk_per_level(nearness(priors, gt_boxes), 1, priors.level_sizes)
        allowed = nearest & F.inside_size_range(priors, gt_boxes, self.size_ranges)
        return Assignment(F.best_gt(smallness(priors, gt_boxes), allowed))
