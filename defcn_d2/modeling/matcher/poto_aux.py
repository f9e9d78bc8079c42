"""The one-to-many assignment of the auxiliary loss (arXiv 2012.03544, section 3.4)."""

from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances

from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import prediction_quality
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class POTOAux:
    """Several locations per ground truth: ATSS' adaptive threshold over POTO's quality.

    The k best qualities of each level are candidates, also outside the box; foreground are those
    of at least mean + standard deviation that lie inside it. The quality takes the plain class
    probability, without the filter.
    """

    @configurable
    def __init__(self, *, alpha: float = 0.8, topk: int = 9):
        """
        Args:
            alpha: weight of the IoU in the quality, in [0, 1].
            topk: candidates per level.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"AUX.MATCHER.ALPHA {alpha} is out of range; take one in [0, 1]")
        if topk < 1:
            raise ValueError(f"AUX.MATCHER.TOPK {topk} is too small; take 1 or more")
        self.alpha = alpha
        self.topk = topk

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"alpha": cfg.ALPHA, "topk": cfg.TOPK}

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        quality = prediction_quality(predictions, gt_boxes, gt.gt_classes, self.alpha, fused=False)
        candidates = F.topk_per_level(quality, self.topk, priors.level_sizes)
        foreground = (
            candidates & F.above_mean_std(quality, candidates) & F.inside_box(priors, gt_boxes)
        )
        return Assignment(F.best_gt(quality, foreground))
